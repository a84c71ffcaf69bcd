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

    /// Whether it is a send.
    pub(crate) const fn is_send(&self) -> bool {
        matches!(self, Self::Send { .. })
    }

    /// The other rank.
    pub const fn peer(&self) -> Rank {
        match *self {
            Self::Send { peer, .. } | Self::Receive { peer, .. } => peer,
        }
    }
}

/// An empty list of transfers, whose memory the next group of transfers uses.
#[derive(Debug, Default)]
pub(crate) struct SpareTransfers(Vec<Transfer>);

// SAFETY: the list is empty, so it holds no pointers.
unsafe impl Send for SpareTransfers {}

impl SpareTransfers {
    /// The empty list.
    #[inline]
    pub(crate) fn take(&mut self) -> Vec<Transfer> {
        std::mem::take(&mut self.0)
    }

    /// Empties a list and keeps it.
    #[inline]
    pub(crate) fn keep(&mut self, mut transfers: Vec<Transfer>) {
        transfers.clear();
        self.0 = transfers;
    }
}

/// The hash on which both ranks must agree: that it is a transfer, its number of bytes, and its
/// number among the transfers of its link in its direction. Without the latter, transfers that the
/// two ranks list in different order would not be noticed where they travel by different protocols.
#[inline]
pub(crate) fn tag(bytes: usize, number: u32) -> u32 {
    let mixed = (bytes as u64 ^ u64::from(number) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 ^ 0x7032_7000
}

/// The transfers of `rank` to itself: each send with its receive, as source, destination and bytes.
///
/// # Errors
/// The sends and receives of `rank` to itself differ in number or length.
#[inline]
pub(crate) fn own_copies(
    transfers: &[Transfer],
    rank: Rank,
) -> Result<impl Iterator<Item = (*const u8, *mut u8, usize)>, Error> {
    let sends = transfers.iter().filter_map(move |transfer| match *transfer {
        Transfer::Send { data, bytes, peer } if peer == rank => Some((data, bytes)),
        _ => None,
    });
    let receives = transfers.iter().filter_map(move |transfer| match *transfer {
        Transfer::Receive { data, bytes, peer } if peer == rank => Some((data, bytes)),
        _ => None,
    });
    let unmatched = sends.clone().count().abs_diff(receives.clone().count());
    let pairs = sends.zip(receives);
    let unequal = pairs.clone().filter(|(send, receive)| send.1 != receive.1).count();
    if unmatched > 0 || unequal > 0 {
        return Err(own_mismatch(rank, unmatched, unequal));
    }
    Ok(pairs.map(|((from, bytes), (to, _))| (from, to, bytes)))
}

/// The error for transfers of `rank` to itself of which `unmatched` have no partner, and `unequal`
/// pairs differ in length.
#[cold]
fn own_mismatch(rank: Rank, unmatched: usize, unequal: usize) -> Error {
    let (count, fault) = if unmatched > 0 {
        (unmatched, "no matching send or receive in the group; call both in one group")
    } else {
        (unequal, "a send and a receive of different length; make them equal")
    };
    Error::InvalidUsage {
        what: format!("{count} transfers between rank {rank} and itself have {fault}"),
    }
}
