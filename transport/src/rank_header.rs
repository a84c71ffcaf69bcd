//! The header of a rank: its doorbell, its abort word and whether it is still present.
//!
//! It lies at the start of the rank's inbox, where all its peers read and write it.

use core::any::Any;
use std::sync::Arc;

use crate::Rank;
use crate::doorbell::Doorbell;
use crate::error::LinkError;
use crate::sync::{AtomicU32, AtomicU64, Ordering, full_fence};

/// Who a rank is and which shape its inbox has. Written once, before another rank sees it.
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
    /// The owner's process, for people who inspect the memory.
    pub pid: u32,
    /// A random word, which the owner also says in handshakes: a rank that reads it here reads the
    /// memory of that owner.
    pub word: u64,
}

/// The first word of an inbox. Its last byte is the version of the format of all that follows.
pub const MAGIC: u64 = u64::from_le_bytes(*b"maypole\x03");

/// The header of a rank. All zeros is a valid header of a rank that is present.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct RankHeader {
    identity: RankIdentity,
    /// The doorbell that everything rings that can end a wait of this rank.
    pub doorbell: Doorbell,
    /// 0, or which rank aborted and why. The first rank that writes it wins.
    abort: AtomicU64,
    /// `PRESENT`, `LEFT` or `DIED`. It shares a cache line with the abort word, because both are
    /// written at most once.
    presence: AtomicU32,
    /// 1 while the rank may read memory that other ranks lend it.
    reading: AtomicU32,
}

const PRESENT: u32 = 0;
const LEFT: u32 = 1;
const DIED: u32 = 2;

/// Set in every abort word, because rank 0 may abort for reason 0.
const ABORTED: u64 = 1 << 63;

impl RankHeader {
    /// A header of a rank with this identity.
    pub fn new(identity: RankIdentity) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The identity that the rank wrote.
    pub fn identity(&self) -> RankIdentity {
        self.identity
    }

    /// Makes every operation of this rank end with [`LinkError::Aborted`], and wakes it. An earlier
    /// abort stays in force.
    pub fn abort(&self, by: Rank, reason: u32) {
        let word = ABORTED | u64::from(by) << 32 | u64::from(reason);
        // Relaxed: only one value is ever stored, and nothing else is published with it.
        let _ = self.abort.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed);
        self.doorbell.ring();
    }

    /// The abort, if there was one. Costs one relaxed load of a cache line that is rarely written.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        let word = self.abort.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let by = ((word & !ABORTED) >> 32) as Rank;
        Some(LinkError::Aborted { by, reason: word as u32 })
    }

    /// Records that the rank left the communicator: it sends and releases nothing more.
    pub fn leave(&self) {
        self.depart(LEFT);
    }

    /// Records that the rank's process is proven dead.
    pub fn die(&self) {
        self.depart(DIED);
    }

    /// The error that says how the rank, named `peer` in it, is gone; `None` if it is present. All
    /// that the rank published before is visible then.
    pub fn gone(&self, peer: Rank) -> Option<LinkError> {
        // Acquire, paired as `departure`.
        match self.presence.load(Ordering::Acquire) {
            PRESENT => None,
            LEFT => Some(LinkError::PeerLeft { peer }),
            _ => Some(LinkError::PeerDied { peer }),
        }
    }

    /// Whether the rank needs no core at present: it sleeps, or is about to, or is gone.
    pub fn is_asleep(&self) -> bool {
        // Relaxed: nothing follows from it but how this rank waits.
        self.doorbell.is_awaited() || self.presence.load(Ordering::Relaxed) != PRESENT
    }

    /// Records that the rank may read lent memory from now on. Call it before a receive, which
    /// begins with a look at the abort word: either that look sees an abort, or the rank that
    /// aborted sees this record.
    pub fn start_reading(&self) {
        self.reading.store(1, Ordering::Relaxed);
        full_fence();
    }

    /// Records that the rank reads no lent memory any more.
    pub fn stop_reading(&self) {
        // Release, paired as `reading`.
        self.reading.store(0, Ordering::Release);
    }

    /// Whether the rank may read lent memory. Once it was aborted and this is false, it stays
    /// false.
    pub fn is_reading(&self) -> bool {
        full_fence();
        // Acquire, paired as `reading`.
        self.reading.load(Ordering::Acquire) != 0
    }

    fn depart(&self, how: u32) {
        // Release, paired as `departure`. A rank that left cannot die any more.
        let _ = self.presence.compare_exchange(PRESENT, how, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// The headers of the two ranks of a link, as one of the two sees them, and an owner that keeps
/// their memory alive.
#[derive(Clone)]
pub struct RankPair {
    own: *const RankHeader,
    theirs: *const RankHeader,
    peer: Rank,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: both headers consist of atomics. `_keep` keeps them alive and may itself be sent.
unsafe impl Send for RankPair {}

impl RankPair {
    /// The pair of this rank, with header `own`, and rank `peer`, with header `theirs`.
    ///
    /// # Safety
    /// Both headers stay valid as long as `keep` lives.
    pub unsafe fn new(
        own: *const RankHeader,
        theirs: *const RankHeader,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { own, theirs, peer, _keep: keep }
    }

    /// The other rank.
    pub fn peer(&self) -> Rank {
        self.peer
    }

    /// The other rank's doorbell.
    #[inline]
    pub fn peer_doorbell(&self) -> &Doorbell {
        // SAFETY: the caller of `new` promised that the header lives as long as `_keep`.
        unsafe { &(*self.theirs).doorbell }
    }

    /// The abort of this rank's communicator, if there was one. Cheap.
    #[inline]
    pub fn aborted(&self) -> Option<LinkError> {
        // SAFETY: as in `peer_doorbell`.
        unsafe { (*self.own).aborted() }
    }

    /// Whether and how the other rank is gone. Ask when nothing has arrived from it; if it is gone,
    /// look once more for what it sent before.
    pub fn gone(&self) -> Option<LinkError> {
        // SAFETY: as in `peer_doorbell`.
        unsafe { (*self.theirs).gone(self.peer) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_abort_wins_and_is_read_back_unchanged() {
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
    fn a_rank_that_left_cannot_die() {
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
    use crate::sync::fence;
    use loom::thread;

    /// A lender aborts a reader and then overwrites the memory that it had lent. A reader that has
    /// seen the new content sees the abort afterwards.
    #[test]
    fn loom_a_reader_of_overwritten_lent_memory_sees_the_abort() {
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
