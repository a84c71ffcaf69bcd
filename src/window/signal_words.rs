//! The signal_words of a rank: the words by which others signal it, in memory that they write to themselves where they can.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole_algorithms::Rank;
use maypole_transport::segment::{self, PeerSegment};

use super::WindowMemory;
use crate::error::Error;
use crate::memory::SharedBuffer;

/// Windows with a number up to this can be written to directly: the signal_words has a word for each.
pub(crate) const MOST_DIRECT_WINDOWS: u32 = 512;

/// Words of a cache line.
const LINE: usize = 8;

/// What others write to a rank's signal_words, what its thread and the communicator share, and where its windows are.
pub(crate) struct SignalWords {
    /// A word per window, 1 when it is deregistered; then a line per rank, with the number of its signals.
    words: SharedBuffer,
    nranks: usize,
    /// This rank's memory of each window. Locked while its thread writes to it.
    extents: Mutex<HashMap<u32, WindowMemory>>,
    /// Per rank: 1 once nothing more comes from it by messages.
    pub(super) closed: Vec<AtomicU64>,
    /// Why a rank's messages could not be applied.
    failure: Mutex<Option<Error>>,
    /// 1 when the thread shall end.
    pub(super) stop: AtomicU64,
}

/// Bytes of a signal_words for so many ranks.
const fn bytes(nranks: usize) -> usize {
    (MOST_DIRECT_WINDOWS as usize + nranks * LINE) * size_of::<AtomicU64>()
}

/// The index of a word.
const fn of_window(window: u32) -> usize {
    window as usize - 1
}

const fn of_rank(rank: Rank) -> usize {
    MOST_DIRECT_WINDOWS as usize + rank as usize * LINE
}

impl SignalWords {
    pub(crate) fn new(nranks: usize) -> Result<Self, Error> {
        Ok(Self {
            words: SharedBuffer::new(bytes(nranks))?,
            nranks,
            extents: Mutex::default(),
            closed: (0..nranks).map(|_| AtomicU64::new(0)).collect(),
            failure: Mutex::default(),
            stop: AtomicU64::new(0),
        })
    }

    /// Its memory, to be offered: first byte and length.
    pub(crate) fn memory(&self) -> (*const u8, usize) {
        (self.words.as_ptr(), self.words.len())
    }

    /// The number of its segment; 0 if it is in none.
    pub(crate) fn segment(&self) -> u64 {
        segment::locate(self.words.as_ptr(), self.words.len()).map_or(0, |(id, _)| id)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index * size_of::<AtomicU64>() < bytes(self.nranks));
        // SAFETY: the buffer has `bytes` bytes, which are only ever used as these words; it is aligned to a page.
        unsafe { &*self.words.as_ptr().cast::<AtomicU64>().add(index) }
    }

    /// Whole at all times, so a panic elsewhere under the lock does no harm.
    pub(crate) fn extents(&self) -> MutexGuard<'_, HashMap<u32, WindowMemory>> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_signal(&self, of: Rank) {
        // Pairs as `window-signal`: who sees the signal sees what was put before it.
        self.word(of_rank(of)).fetch_add(1, Ordering::Release);
    }

    pub(crate) fn signals(&self, of: Rank) -> u64 {
        // Pairs as `window-signal`.
        self.word(of_rank(of)).load(Ordering::Acquire)
    }

    /// Whether nothing more comes of that rank by messages.
    pub(crate) fn is_closed(&self, of: Rank) -> bool {
        // Pairs as `window-closed`: who sees it sees all signals that came.
        self.closed[of as usize].load(Ordering::Acquire) != 0
    }

    /// Others are to put to that window no more.
    pub(crate) fn close(&self, window: u32) {
        if window <= MOST_DIRECT_WINDOWS {
            // Nothing is published by it: whoever puts all the same has been told not to.
            self.word(of_window(window)).store(1, Ordering::Relaxed);
        }
    }
}

/// A peer's signal_words, if this rank writes to it itself.
#[derive(Clone)]
pub(crate) struct PeerSignalWords(PeerSegment);

impl PeerSignalWords {
    /// The signal_words in that memory, of a communicator of so many ranks; None if it is too small for one.
    pub(crate) fn new(reach: PeerSegment, nranks: usize) -> Option<Self> {
        reach.address(0, bytes(nranks)).map(|_| Self(reach))
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        let at = self.0.address(index * size_of::<AtomicU64>(), size_of::<AtomicU64>())?;
        // SAFETY: it is within the memory, which is aligned to a page and lives as long as `self`; it holds such words alone.
        Some(unsafe { &*at.cast::<AtomicU64>() })
    }

    /// Whether the peer has taken that window back.
    pub(crate) fn is_closed(&self, window: u32) -> bool {
        self.word(of_window(window)).is_none_or(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// A signal of `from`, after all that it has written.
    pub(crate) fn add_signal(&self, from: Rank) {
        if let Some(word) = self.word(of_rank(from)) {
            // Pairs as `window-signal`.
            word.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_written_from_elsewhere() {
        let signal_words = SignalWords::new(3).unwrap();
        assert_ne!(signal_words.segment(), 0);
        signal_words.add_signal(2);
        assert_eq!([0, 1, 2].map(|rank| signal_words.signals(rank)), [0, 0, 1]);
        signal_words.close(MOST_DIRECT_WINDOWS);
        signal_words.close(MOST_DIRECT_WINDOWS + 1);
        assert_eq!(signal_words.signals(0), 0);
    }
}
