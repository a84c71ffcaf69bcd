//! Grouped sends and receives: bound from local knowledge alone, since no rank knows what the others send.
//!
//! Each peer gets one lane for what goes there and one for what comes from there, each a segment per operation in the order of
//! the calls. What is certain of it, whatever the other ranks do: lanes never wait for each other, messages of a pair are matched in
//! order, and an operation ends as soon as its partner has been called, in whatever order either rank called its operations.
//! So a group ends if every operation has its partner in a group (or call) that its rank reaches without waiting for this one.

use std::collections::BTreeMap;

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;

use crate::call::Extent;
use crate::error::Error;
use crate::plan::bind::{BoundStep, Lane, Place, Program, Segment};

/// The channel of sends and receives.
pub(crate) const CHANNEL: Channel = 0;

/// Channel 0 of a schedule; its others follow.
pub(crate) const FIRST_BEYOND: Channel = 1;

/// One send or receive.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// `bytes` bytes from `data` to `peer`.
    Send {
        /// First byte.
        data: *const u8,
        /// How many; zero is a message too.
        bytes: usize,
        /// The receiver.
        peer: Rank,
    },
    /// `bytes` bytes from `peer` to `data`.
    Receive {
        /// First byte.
        data: *mut u8,
        /// How many, exactly as many as are sent.
        bytes: usize,
        /// The sender.
        peer: Rank,
    },
}

impl Transfer {
    /// How many bytes.
    pub const fn bytes(&self) -> usize {
        match *self {
            Self::Send { bytes, .. } | Self::Receive { bytes, .. } => bytes,
        }
    }

    /// The other rank.
    pub const fn peer(&self) -> Rank {
        match *self {
            Self::Send { peer, .. } | Self::Receive { peer, .. } => peer,
        }
    }
}

/// The program for `transfers`, none of them to `rank` itself, in tiles of `tile` bytes. Addresses are absolute. `call` is a
/// hash of what they are a part of, 0 for sends and receives of their own.
pub(crate) fn bind(
    transfers: &[Transfer],
    tile: usize,
    call: u32,
    mut link: impl FnMut(Rank) -> Result<u32, Error>,
) -> Result<Program, Error> {
    // By peer and direction.
    let mut lanes: BTreeMap<(Rank, bool), Lane> = BTreeMap::new();
    for transfer in transfers {
        let peer = transfer.peer();
        let index = link(peer)?;
        let (place, bytes, sends) = match *transfer {
            Transfer::Send { data, bytes, .. } => {
                (Place::Send(Extent { start: data as usize, len: bytes }), bytes, true)
            }
            Transfer::Receive { data, bytes, .. } => {
                (Place::Recv(Extent { start: data as usize, len: bytes }), bytes, false)
            }
        };
        let mut step = BoundStep { last: 1, ..BoundStep::default() };
        let (from, to) =
            if sends { (place, Place::Link(index)) } else { (Place::Link(index), place) };
        step.inputs.push(from);
        step.outputs.push(to);
        let tiles = bytes.div_ceil(tile).max(1) as u64;
        let tag = tag(bytes) ^ call;
        let segment = Segment { steps: vec![step], tiles, tag, bytes: Some(bytes) };
        lanes.entry((peer, sends)).or_default().push(segment);
    }
    Ok(Program { lanes: lanes.into_values().collect(), tile, scratch: 0 })
}

/// What both ends must agree on: that it is a transfer, and how long.
pub(crate) fn tag(bytes: usize) -> u32 {
    let mixed = (bytes as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 ^ 0x7032_7000
}

/// Takes the transfers of `rank` to itself out of `transfers`: each send with the receive that it goes to.
pub(crate) fn take_own(
    transfers: &mut Vec<Transfer>,
    rank: Rank,
) -> Result<Vec<(*const u8, *mut u8, usize)>, Error> {
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    transfers.retain(|transfer| {
        match *transfer {
            Transfer::Send { data, bytes, peer } if peer == rank => sends.push((data, bytes)),
            Transfer::Receive { data, bytes, peer } if peer == rank => receives.push((data, bytes)),
            _ => return true,
        }
        false
    });
    let lengths = |n: usize| format!("{n} of the transfers between rank {rank} and itself");
    if sends.len() != receives.len() {
        let unmatched = sends.len().abs_diff(receives.len());
        return Err(Error::InvalidUsage {
            what: format!("{} have no partner in the group", lengths(unmatched)),
        });
    }
    let pairs = sends.into_iter().zip(receives);
    let unequal = pairs.clone().filter(|(send, receive)| send.1 != receive.1).count();
    if unequal > 0 {
        return Err(Error::InvalidUsage { what: format!("{} differ in length", lengths(unequal)) });
    }
    Ok(pairs.map(|((from, bytes), (to, _))| (from, to, bytes)).collect())
}
