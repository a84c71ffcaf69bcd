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

use crate::call::Extent;
use crate::error::Error;
use crate::plan::bind::{BoundLane, BoundOperand, BoundStep, LaneSegment, RankProgram};
use crate::transfer::{Transfer, tag};

/// The program for `transfers`, none of them to the rank itself, in tiles of `tile` bytes. Extents
/// are absolute addresses. `call` is a hash of the call that the transfers are a part of, 0 for
/// plain sends and receives. `link` opens the link to a peer and returns its index.
pub(crate) fn bind_transfers(
    transfers: &[Transfer],
    tile: usize,
    call: u32,
    mut link: impl FnMut(Rank) -> Result<u32, Error>,
) -> Result<RankProgram, Error> {
    // By peer, and by whether the lane sends.
    let mut lanes: BTreeMap<(Rank, bool), BoundLane> = BTreeMap::new();
    for transfer in transfers {
        let peer = transfer.peer();
        let index = link(peer)?;
        let (operand, bytes, sends) = match *transfer {
            Transfer::Send { data, bytes, .. } => {
                (BoundOperand::Send(Extent { start: data as usize, len: bytes }), bytes, true)
            }
            Transfer::Receive { data, bytes, .. } => {
                (BoundOperand::Recv(Extent { start: data as usize, len: bytes }), bytes, false)
            }
        };
        let mut step = BoundStep { last: 1, ..BoundStep::default() };
        let (from, to) = if sends {
            (operand, BoundOperand::Link(index))
        } else {
            (BoundOperand::Link(index), operand)
        };
        step.inputs.push(from);
        step.outputs.push(to);
        let tiles = bytes.div_ceil(tile).max(1) as u64;
        let tag = tag(bytes) ^ call;
        let segment = LaneSegment { steps: vec![step], tiles, tag, bytes: Some(bytes) };
        lanes.entry((peer, sends)).or_default().push(segment);
    }
    Ok(RankProgram { lanes: lanes.into_values().collect(), tile, scratch: 0 })
}
