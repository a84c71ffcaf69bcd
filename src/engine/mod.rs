//! The host engine: runs plans on the caller's thread.
//!
//! Two readings of the same steps: [`interpreter`] for messages in slots, tile by tile; [`compiled`] for what fits the line protocol.

pub(crate) mod compiled;
pub(crate) mod interpreter;
pub(crate) mod scratch;
pub(crate) mod wait;

use maypole_algorithms::Rank;

use crate::error::Error;

/// The caller's memory.
#[derive(Clone, Copy)]
pub(crate) struct CallBuffers {
    pub(crate) send: *const u8,
    pub(crate) recv: *mut u8,
}

/// A message of `peer` belongs to a transfer of another length than the `bytes` that this rank receives, or to none; it is
/// `piece` bytes long, which is all of it or one tile.
#[cold]
pub(crate) fn other_length(peer: Rank, bytes: usize, piece: usize) -> Error {
    let what = format!(
        "rank {peer} sends another number of bytes than the {bytes} that are received from it (a piece of {piece} came)"
    );
    Error::Mismatch { ranks: [peer, peer], what }
}

/// A message of `peer` carries another hash than ours: the two ranks are not in the same call.
#[cold]
pub(crate) fn mismatch(peer: Rank, ours: u32, theirs: u32) -> Error {
    // The communicator asks that rank for its calls, and puts both in words.
    let what =
        format!("a message of rank {peer} carries the hash {theirs:#010x}, not {ours:#010x}");
    Error::Mismatch { ranks: [peer, peer], what }
}
