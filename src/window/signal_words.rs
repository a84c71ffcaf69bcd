//! The signal words of a rank, and what a rank shares with the thread that applies messages to its
//! windows.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole_algorithms::Rank;
use maypole_transport::segment::{self, PeerSegment};
use maypole_transport::signal_words::SignalWordsRef;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::error::Error;
use crate::memory::SharedBuffer;

pub(crate) use maypole_transport::signal_words::WINDOW_SLOTS;

/// The signal words of this rank, its memory of each window, and the state of its thread.
pub(crate) struct SignalWords {
    /// Memory that holds the signal words and nothing else.
    memory: SharedBuffer,
    nranks: usize,
    /// The memory of this rank in each window. Locked while the thread writes to it.
    extents: Mutex<HashMap<u32, WindowMemory>>,
    /// The free slots, the next one last.
    free_slots: Mutex<Vec<u32>>,
    /// Per rank: 1 after the last message of that rank was applied.
    closed: Vec<AtomicU64>,
    /// Why a message could not be applied.
    failure: Mutex<Option<Error>>,
    /// 1 when the thread is to end.
    stop: AtomicU64,
}

/// Memory that was registered with a window.
#[derive(Clone, Copy)]
pub(crate) struct WindowMemory {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: the caller that registered the memory promised that any thread may write to it until it
// is deregistered.
unsafe impl Send for WindowMemory {}

/// Bytes of the signal words in a communicator of `nranks` ranks.
const fn bytes(nranks: usize) -> usize {
    SignalWordsRef::count(nranks) * size_of::<AtomicU64>()
}

impl SignalWords {
    /// Signal words of a rank that has no signals.
    ///
    /// # Errors
    /// There is no memory.
    pub(crate) fn new(nranks: usize) -> Result<Self, Error> {
        Ok(Self {
            memory: SharedBuffer::new(bytes(nranks))?,
            nranks,
            extents: Mutex::default(),
            free_slots: Mutex::new((0..WINDOW_SLOTS).rev().collect()),
            closed: (0..nranks).map(|_| AtomicU64::new(0)).collect(),
            failure: Mutex::default(),
            stop: AtomicU64::new(0),
        })
    }

    /// The memory of the words, to be offered to other ranks: first byte and length.
    pub(crate) fn memory(&self) -> (*const u8, usize) {
        (self.memory.as_ptr(), self.memory.len())
    }

    /// The number of the segment of the words; 0 if they are in none.
    pub(crate) fn segment(&self) -> u64 {
        segment::locate(self.memory.as_ptr(), self.memory.len()).map_or(0, |(id, _)| id)
    }

    /// The memory of this rank in each window, by the number of the window. It is valid at all
    /// times, so a panic of another thread under the lock does no harm.
    pub(crate) fn extents(&self) -> MutexGuard<'_, HashMap<u32, WindowMemory>> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a message could not be applied, if one could not.
    pub(crate) fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a signal of rank `from`, after everything that the caller has written.
    pub(crate) fn add_signal(&self, from: Rank) {
        self.words().add_signal(from);
    }

    /// The number of signals of rank `from` so far.
    pub(crate) fn signals(&self, from: Rank) -> u64 {
        self.words().signals(from)
    }

    /// Gives a window a slot, if one is free.
    pub(crate) fn open_window(&self, window: u32) -> Option<u32> {
        let slot = self.free_slots().pop()?;
        self.words().open_window(slot, window);
        Some(slot)
    }

    /// Takes the slot of a window that is deregistered.
    pub(crate) fn close_window(&self, slot: u32) {
        self.words().close_window(slot);
        self.free_slots().push(slot);
    }

    /// A panic of another thread under the lock leaves a valid list.
    fn free_slots(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free_slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the last message of that rank was applied.
    pub(crate) fn is_closed(&self, from: Rank) -> bool {
        // Pairs as `window-closed` with the store in `close_rank`: a thread that sees it sees all
        // signals of the rank.
        self.closed[from as usize].load(Ordering::Acquire) != 0
    }

    /// States that the last message of that rank was applied.
    pub(super) fn close_rank(&self, from: Rank) {
        // Pairs as `window-closed` with the load in `is_closed`.
        self.closed[from as usize].store(1, Ordering::Release);
    }

    /// Makes the thread end at its next look; the caller rings its doorbell.
    pub(super) fn stop_thread(&self) {
        // Pairs as `window-stop` with the load in `is_stopped`.
        self.stop.store(1, Ordering::Release);
    }

    /// Whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        // Pairs as `window-stop` with the store in `stop_thread`.
        self.stop.load(Ordering::Acquire) != 0
    }

    fn words(&self) -> SignalWordsRef<'_> {
        let words = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: the memory has `bytes(nranks)` bytes, which are only ever used as these words; it
        // is aligned to a page and lives as long as `self`.
        SignalWordsRef::new(unsafe {
            std::slice::from_raw_parts(words, SignalWordsRef::count(self.nranks))
        })
    }
}

/// The signal words of a peer to which this rank writes directly.
#[derive(Clone)]
pub(crate) struct PeerSignalWords {
    segment: PeerSegment,
    nranks: usize,
}

impl PeerSignalWords {
    /// The signal words in that segment, in a communicator of `nranks` ranks. None if the segment
    /// is too small.
    pub(crate) fn new(segment: PeerSegment, nranks: usize) -> Option<Self> {
        segment.address(0, bytes(nranks))?;
        Some(Self { segment, nranks })
    }

    /// Whether the peer has not deregistered that window, to which it gave `slot`.
    pub(crate) fn is_window_open(&self, slot: u32, window: u32) -> bool {
        self.words().is_some_and(|words| words.is_window_open(slot, window))
    }

    /// Adds a signal of rank `from`, after everything that the caller has written.
    pub(crate) fn add_signal(&self, from: Rank) {
        if let Some(words) = self.words() {
            words.add_signal(from);
        }
    }

    fn words(&self) -> Option<SignalWordsRef<'_>> {
        let words = self.segment.address(0, bytes(self.nranks))?.cast::<AtomicU64>();
        // SAFETY: the words lie within the segment, which is aligned to a page, lives as long as
        // `self`, and holds only such words.
        Some(SignalWordsRef::new(unsafe {
            std::slice::from_raw_parts(words, SignalWordsRef::count(self.nranks))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_words_lie_in_a_segment_that_peers_can_map() {
        let words = SignalWords::new(3).unwrap();
        assert_ne!(words.segment(), 0);
        words.add_signal(2);
        assert_eq!([0, 1, 2].map(|rank| words.signals(rank)), [0, 0, 1]);
        let slots: Vec<_> = (1..=WINDOW_SLOTS + 1).map(|n| words.open_window(n)).collect();
        assert_eq!((slots[0], slots[WINDOW_SLOTS as usize]), (Some(0), None));
        words.close_window(7);
        assert_eq!(words.open_window(WINDOW_SLOTS + 2), Some(7));
        assert_eq!(words.signals(0), 0);
    }
}
