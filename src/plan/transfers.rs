//! Grouped sends and receives: bound from local knowledge alone, since no rank knows what the others send.
//!
//! Each peer gets one lane for what goes there and one for what comes from there, each a segment per operation in the order of
//! the calls. What is certain of it, whatever the other ranks do: lanes never wait for each other, messages of a pair are matched in
//! order, and an operation ends as soon as its partner has been called, in whatever order either rank called its operations.
//! So a group ends if every operation has its partner in a group (or call) that its rank reaches without waiting for this one.

use std::collections::BTreeMap;

use maypole_algorithms::Rank;

use crate::call::Extent;
use crate::error::Error;
use crate::plan::bind::{BoundLane, BoundOperand, BoundStep, LaneSegment, RankProgram};
use crate::transfer::{Transfer, tag};

/// The program for `transfers`, none of them to `rank` itself, in tiles of `tile` bytes. Addresses are absolute. `call` is a
/// hash of what they are a part of, 0 for sends and receives of their own.
pub(crate) fn bind_transfers(
    transfers: &[Transfer],
    tile: usize,
    call: u32,
    mut link: impl FnMut(Rank) -> Result<u32, Error>,
) -> Result<RankProgram, Error> {
    // By peer and direction.
    let mut lanes: BTreeMap<(Rank, bool), BoundLane> = BTreeMap::new();
    for transfer in transfers {
        let peer = transfer.peer();
        let index = link(peer)?;
        let (place, bytes, sends) = match *transfer {
            Transfer::Send { data, bytes, .. } => {
                (BoundOperand::Send(Extent { start: data as usize, len: bytes }), bytes, true)
            }
            Transfer::Receive { data, bytes, .. } => {
                (BoundOperand::Recv(Extent { start: data as usize, len: bytes }), bytes, false)
            }
        };
        let mut step = BoundStep { last: 1, ..BoundStep::default() };
        let (from, to) = if sends {
            (place, BoundOperand::Link(index))
        } else {
            (BoundOperand::Link(index), place)
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
