//! The host engine, which runs plans on the thread of the caller.
//!
//! [`interpreter`] runs the steps of a plan over slots and lent memory, tile by tile. [`compiled`]
//! runs plans that were compiled for LL messages. [`ll_transfer`] runs sends and receives that fit
//! LL messages.

pub(crate) mod compiled;
pub(crate) mod interpreter;
pub(crate) mod ll_transfer;
pub(crate) mod scratch;
pub(crate) mod wait;

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;

use crate::error::Error;

/// The buffers of a call.
#[derive(Clone, Copy)]
pub(crate) struct CallBuffers {
    pub(crate) send: *const u8,
    pub(crate) recv: *mut u8,
}

/// The error for a message of `peer` that belongs to a transfer of another length than the
/// `expected` bytes of the receive, or to no transfer. The message has `received` bytes, if that
/// is known, which are the whole transfer or one tile of it.
#[cold]
pub(crate) fn length_mismatch(peer: Rank, expected: usize, received: Option<usize>) -> Error {
    let message = match received {
        Some(received) => format!("a message of {received} bytes arrived"),
        None => String::from("a message of another length arrived"),
    };
    let what = format!(
        "rank {peer} does not send the {expected} bytes that this rank receives from it \
         ({message}); make both calls with the same count and type"
    );
    Error::Mismatch { ranks: [peer, peer], what }
}

/// The error for a message of `peer` that belongs to the right call and has another length than
/// this call's messages have at its place. Equal calls have messages of equal lengths.
#[cold]
pub(crate) fn wrong_length(peer: Rank) -> Error {
    LinkError::Corrupt { peer, why: "a message has another length than its call asks for" }.into()
}

/// The error for a message of `peer` that carries another hash: the two ranks are in different
/// calls.
#[cold]
pub(crate) fn tag_mismatch(peer: Rank, ours: u32, theirs: u32) -> Error {
    // The communicator asks that rank for its calls, and adds both calls in words.
    let what =
        format!("a message of rank {peer} carries the hash {theirs:#010x}, not {ours:#010x}");
    Error::Mismatch { ranks: [peer, peer], what }
}
