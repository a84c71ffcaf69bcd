//! Sends and receives as callers state them, and the transfers of a rank to itself.

use maypole_algorithms::Rank;

use crate::error::Error;

/// One send or receive.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// `bytes` bytes from `data` to `peer`.
    Send {
        /// First byte.
        data: *const u8,
        /// The number of bytes. Zero bytes are a message too.
        bytes: usize,
        /// The receiver.
        peer: Rank,
    },
    /// `bytes` bytes from `peer` to `data`.
    Receive {
        /// First byte.
        data: *mut u8,
        /// The number of bytes, which must equal the number that is sent.
        bytes: usize,
        /// The sender.
        peer: Rank,
    },
}

impl Transfer {
    /// The number of bytes.
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

/// The hash on which both ranks must agree: that it is a transfer, and its number of bytes.
pub(crate) fn tag(bytes: usize) -> u32 {
    let mixed = (bytes as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 ^ 0x7032_7000
}

/// Removes the transfers of `rank` to itself from `transfers`; returns each send with its receive,
/// as source, destination and bytes.
///
/// # Errors
/// The sends and receives of `rank` to itself differ in number or length.
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
    let count = |n: usize| format!("{n} transfers between rank {rank} and itself");
    if sends.len() != receives.len() {
        let unmatched = sends.len().abs_diff(receives.len());
        return Err(Error::InvalidUsage {
            what: format!(
                "{} have no matching send or receive in the group; call both in one group",
                count(unmatched)
            ),
        });
    }
    let pairs = sends.into_iter().zip(receives);
    let unequal = pairs.clone().filter(|(send, receive)| send.1 != receive.1).count();
    if unequal > 0 {
        return Err(Error::InvalidUsage {
            what: format!(
                "{} have a send and a receive of different length; make them equal",
                count(unequal)
            ),
        });
    }
    Ok(pairs.map(|((from, bytes), (to, _))| (from, to, bytes)).collect())
}
