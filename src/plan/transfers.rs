//! The binding of grouped sends and receives, from local knowledge alone, because no rank knows
//! what the others send.
//!
//! There is one lane for the sends to each peer and one for the receives from it, each with one
//! segment per operation in the order of the calls. Whatever the other ranks do, lanes never wait
//! for each other, messages of a pair of ranks are matched in order, and an operation ends as soon
//! as its partner has been called, in whatever order either rank called its operations. So a group
//! ends if every operation has its partner in a group (or call) that the partner's rank reaches
//! without waiting for this group.

use std::collections::BTreeMap;

use maypole_algorithms::Rank;
use maypole_transport::ll::LL_CAPACITY;

use crate::call::Extent;
use crate::error::Error;
use crate::links::Links;
use crate::plan::bind::{BoundLane, BoundOperand, BoundStep, LaneSegment, RankProgram};
use crate::transfer::{Transfer, tag};

/// The program for those of `transfers` that are not to `rank` itself, in tiles of `tile` bytes.
/// Extents are absolute addresses. `call` is a hash of the call that the transfers are a part of, 0
/// for plain sends and receives. A transfer that fits an LL message travels as such if its link
/// allows it. So both ranks find the same, of which neither knows the group of the other.
pub(crate) fn bind_transfers(
    transfers: &[Transfer],
    rank: Rank,
    tile: usize,
    call: u32,
    links: &mut Links,
) -> Result<RankProgram, Error> {
    // By peer, and by whether the lane sends.
    let mut lanes: BTreeMap<(Rank, bool), BoundLane> = BTreeMap::new();
    for transfer in transfers.iter().filter(|transfer| transfer.peer() != rank) {
        let peer = transfer.peer();
        let Some(on) = links.transfers_with(peer) else {
            return Err(Error::internal("a transfer has no link"));
        };
        let index = on.link;
        let (operand, bytes, sends) = match *transfer {
            Transfer::Send { data, bytes, .. } => {
                (BoundOperand::Send(Extent { start: data as usize, len: bytes }), bytes, true)
            }
            Transfer::Receive { data, bytes, .. } => {
                (BoundOperand::Recv(Extent { start: data as usize, len: bytes }), bytes, false)
            }
        };
        let mut step = BoundStep { len: bytes, last: 1, ..BoundStep::default() };
        let (from, to) = if sends {
            (operand, BoundOperand::Link(index))
        } else {
            (BoundOperand::Link(index), operand)
        };
        step.inputs.push(from);
        step.outputs.push(to);
        let tiles = bytes.div_ceil(tile).max(1) as u64;
        // Without LL messages the transfers of a link travel in their order. They have no number
        // then: a rank on a device, which may be the peer, counts none.
        let mut number = 0;
        if on.ll {
            let count = if sends { &mut on.sent } else { &mut on.received };
            number = count.begin();
            count.end();
        }
        let tag = tag(bytes, number) ^ call;
        let ll = on.ll && bytes <= LL_CAPACITY;
        let tiles = if ll { 1 } else { tiles };
        let segment = LaneSegment { steps: vec![step], tiles, tag, bytes: Some(bytes), ll };
        lanes.entry((peer, sends)).or_default().push(segment);
    }
    Ok(RankProgram::new(lanes.into_values().collect(), tile, 0, 1, links))
}
