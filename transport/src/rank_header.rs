//! The header of a rank: the words through which everybody can reach it.
//!
//! It lies at the start of the rank's inbox and is seen by all its peers: the doorbell, the abort word, and whether the
//! rank is still there.

use core::any::Any;
use std::sync::Arc;

use crate::Rank;
use crate::doorbell::Doorbell;
use crate::error::LinkError;
use crate::sync::{AtomicU32, AtomicU64, Ordering, full_fence};

/// What a rank is and what memory it made: written once, before anyone sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RankIdentity {
    /// [`MAGIC`].
    pub magic: u64,
    /// The rank that owns the inbox.
    pub rank: Rank,
    /// The size of the communicator.
    pub nranks: u32,
    /// Links per ordered pair of ranks.
    pub channels: u32,
    /// Slots per link.
    pub depth: u32,
    /// Bytes per slot.
    pub slot_bytes: u64,
    /// The owner's process, for people who look at it.
    pub pid: u32,
}

/// First word of an inbox. The last byte is the version of everything that lies in it.
pub const MAGIC: u64 = u64::from_le_bytes(*b"maypole\x02");

/// The words of a rank. All zeros is a valid header of a rank that is present.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct RankHeader {
    identity: RankIdentity,
    /// Rung by everything that can end a wait of this rank.
    pub doorbell: Doorbell,
    /// 0, or who aborted and why; the first to write wins.
    abort: AtomicU64,
    /// One of the constants below. Beside the abort word: both are written once in a life.
    presence: AtomicU32,
    /// 1 while the rank may read memory that others lend it.
    reading: AtomicU32,
}

const PRESENT: u32 = 0;
const LEFT: u32 = 1;
const DIED: u32 = 2;

/// Marks an abort word that is set, for rank 0 may abort for reason 0.
const ABORTED: u64 = 1 << 63;

impl RankHeader {
    /// A header that says who its rank is.
    pub fn new(identity: RankIdentity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// Who the rank is.
    pub fn identity(&self) -> RankIdentity {
        self.identity
    }

    /// Makes every operation of this rank end with [`LinkError::Aborted`], unless somebody did so before, and wakes it.
    pub fn abort(&self, by: Rank, reason: u32) {
        let word = ABORTED | u64::from(by) << 32 | u64::from(reason);
        // Only one value is ever stored and nothing is published with it.
        let _ = self.abort.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
        self.doorbell.ring();
    }

    /// Who aborted, if anyone did. One relaxed load of a line that nobody writes.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        let word = self.abort.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let by = ((word & !ABORTED) >> 32) as Rank;
        Some(LinkError::Aborted { by, reason: word as u32 })
    }

    /// The rank left in peace: it will neither send nor release anything any more.
    pub fn leave(&self) {
        self.depart(LEFT);
    }

    /// The rank's process is proven dead.
    pub fn die(&self) {
        self.depart(DIED);
    }

    /// Whether the rank (called `peer` in the error) is gone, and how. What it published before is visible then.
    pub fn gone(&self, peer: Rank) -> Option<LinkError> {
        // Pairs as `departure`.
        match self.presence.load(Ordering::Acquire) {
            PRESENT => None,
            LEFT => Some(LinkError::PeerLeft { peer }),
            _ => Some(LinkError::PeerDied { peer }),
        }
    }

    /// The rank may read lent memory from now on. Follows the look at the abort word that a receive begins with: either that
    /// sees an abort, or who aborted sees this.
    pub fn start_reading(&self) {
        self.reading.store(1, Ordering::Relaxed);
        full_fence();
    }

    /// The rank reads no lent memory any more.
    pub fn stop_reading(&self) {
        // Pairs as `reading`.
        self.reading.store(0, Ordering::Release);
    }

    /// Whether the rank may read lent memory. Once it was aborted and this is false, it never will again.
    pub fn is_reading(&self) -> bool {
        full_fence();
        // Pairs as `reading`.
        self.reading.load(Ordering::Acquire) != 0
    }

    fn depart(&self, how: u32) {
        // Pairs as `departure`. A rank that left cannot die any more.
        let _ = self.presence.compare_exchange(PRESENT, how, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// The two ranks of a link, as one of them sees it, and whatever keeps the memory of both.
#[derive(Clone)]
pub struct RankPair {
    mine: *const RankHeader,
    theirs: *const RankHeader,
    peer: Rank,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: both headers consist of atomics and are kept by `_keep`, which may itself move.
unsafe impl Send for RankPair {}

impl RankPair {
    /// The pair of the rank with header `mine` and rank `peer` with header `theirs`.
    ///
    /// # Safety
    /// Both headers stay valid as long as `keep` lives.
    pub unsafe fn new(
        mine: *const RankHeader,
        theirs: *const RankHeader,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { mine, theirs, peer, _keep: keep }
    }

    /// The other rank.
    pub fn peer(&self) -> Rank {
        self.peer
    }

    /// The other rank's doorbell.
    #[inline]
    pub fn peer_doorbell(&self) -> &Doorbell {
        // SAFETY: `new` was promised that the header lives as long as `_keep`.
        unsafe { &(*self.theirs).doorbell }
    }

    /// Whether this rank's communicator was aborted. Cheap.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        // SAFETY: as in `peer_doorbell`.
        unsafe { (*self.mine).aborted() }
    }

    /// Whether the other rank is gone. To be asked when it has nothing for us; then look at what it sent once more.
    pub fn gone(&self) -> Option<LinkError> {
        // SAFETY: as in `peer_doorbell`.
        unsafe { (*self.theirs).gone(self.peer) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_abort_wins_and_is_read_back_whole() {
        let header = RankHeader::default();
        assert_eq!(header.aborted(), None);
        header.abort(i32::MAX as u32, u32::MAX);
        header.abort(1, 2);
        let by = i32::MAX as u32;
        assert_eq!(header.aborted(), Some(LinkError::Aborted { by, reason: u32::MAX }));
        let zero = RankHeader::default();
        zero.abort(0, 0);
        assert_eq!(zero.aborted(), Some(LinkError::Aborted { by: 0, reason: 0 }));
    }

    #[test]
    fn who_left_cannot_die() {
        let header = RankHeader::default();
        assert_eq!(header.gone(3), None);
        header.leave();
        header.die();
        assert_eq!(header.gone(3), Some(LinkError::PeerLeft { peer: 3 }));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::fence;
    use loom::thread;

    /// Of a lender that has aborted a reader, and then writes what it had lent: whoever has read the new sees the abort afterwards.
    #[test]
    fn loom_what_an_aborted_lender_writes_is_not_taken_for_its_message() {
        loom::model(|| {
            let shared = Arc::new((RankHeader::default(), AtomicU32::new(1)));
            let lender = shared.clone();
            let handle = thread::spawn(move || {
                lender.0.abort(0, 0);
                lender.1.store(2, Ordering::Relaxed);
            });
            let read = shared.1.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            assert!(read == 1 || shared.0.aborted().is_some());
            handle.join().unwrap();
        });
    }
}
