//! Signal words: the words by which the ranks of a communicator signal one rank about its windows.
//!
//! The words lie in memory of that rank, to which other ranks of the host write directly where they
//! can:
//!
//! ```text
//!  one word per window slot    the number of the window that has the slot, or 0
//!  one cache line per rank     its first word counts the signals of that rank
//! ```
//!
//! A rank gives each of its windows a slot, as long as one is free, and takes it back when it
//! deregisters the window. A rank that sees a signal sees everything that the signalling rank has
//! written before it.

use crate::Rank;
use crate::sync::{AtomicU64, Ordering};

/// The most windows of a rank at a time that other ranks write to directly.
pub const WINDOW_SLOTS: u32 = if cfg!(loom) { 1 } else { 512 };

/// Words of a cache line.
const LINE_WORDS: usize = 8;

/// A view of the signal words of one rank.
#[derive(Clone, Copy, Debug)]
pub struct SignalWordsRef<'a>(&'a [AtomicU64]);

impl<'a> SignalWordsRef<'a> {
    /// The number of words for a communicator of `nranks` ranks.
    pub const fn count(nranks: usize) -> usize {
        WINDOW_SLOTS as usize + nranks * LINE_WORDS
    }

    /// The view of these words, of which there must be [`count`](Self::count).
    pub fn new(words: &'a [AtomicU64]) -> Self {
        Self(words)
    }

    /// Adds one to the signals of rank `from`, after everything that the caller has written.
    pub fn add_signal(self, from: Rank) {
        // Pairs as `window-signal` with the load in `signals`.
        self.of_rank(from).fetch_add(1, Ordering::Release);
    }

    /// The number of signals of rank `from` so far.
    pub fn signals(self, from: Rank) -> u64 {
        // Pairs as `window-signal` with the addition in `add_signal`: a rank that sees the signal
        // sees what was put before it.
        self.of_rank(from).load(Ordering::Acquire)
    }

    /// Gives `slot` to the window of that number, which is not 0.
    pub fn open_window(self, slot: u32, window: u32) {
        // Relaxed: ranks that use the window are told of it by other messages.
        self.0[slot as usize].store(window.into(), Ordering::Relaxed);
    }

    /// Takes the slot of a window that is deregistered.
    pub fn close_window(self, slot: u32) {
        // Relaxed, because nothing is published by it: a rank that puts to a deregistered window
        // breaks the rules of windows in any case.
        self.0[slot as usize].store(0, Ordering::Relaxed);
    }

    /// Whether the window of that number still has `slot`.
    pub fn is_window_open(self, slot: u32, window: u32) -> bool {
        debug_assert!(slot < WINDOW_SLOTS);
        self.0[slot as usize].load(Ordering::Relaxed) == u64::from(window)
    }

    fn of_rank(self, rank: Rank) -> &'a AtomicU64 {
        &self.0[WINDOW_SLOTS as usize + rank as usize * LINE_WORDS]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn signals_and_marks_have_words_of_their_own() {
        let words: Vec<AtomicU64> =
            (0..SignalWordsRef::count(3)).map(|_| AtomicU64::new(0)).collect();
        let words = SignalWordsRef::new(&words);
        words.add_signal(2);
        words.add_signal(2);
        assert_eq!([0, 1, 2].map(|rank| words.signals(rank)), [0, 0, 2]);
        words.open_window(WINDOW_SLOTS - 1, 600);
        words.open_window(0, 601);
        assert!(words.is_window_open(WINDOW_SLOTS - 1, 600) && words.is_window_open(0, 601));
        words.close_window(WINDOW_SLOTS - 1);
        assert!(!words.is_window_open(WINDOW_SLOTS - 1, 600) && words.is_window_open(0, 601));
        words.open_window(WINDOW_SLOTS - 1, 602);
        assert!(!words.is_window_open(WINDOW_SLOTS - 1, 600));
        assert_eq!([0, 1, 2].map(|rank| words.signals(rank)), [0, 0, 2]);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Cell;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        words: Vec<AtomicU64>,
        windows: [Cell<u32>; 2],
    }

    // SAFETY: the cells are accessed in the order that the signals grant, which loom checks.
    unsafe impl Sync for Shared {}

    /// Two ranks each put to a window of rank 2 and then signal it. When rank 2 sees a signal it
    /// may read what was put.
    #[test]
    fn loom_a_signal_publishes_what_was_put_before_it() {
        loom::model(|| {
            let words = (0..SignalWordsRef::count(2)).map(|_| AtomicU64::new(0)).collect();
            let shared = Arc::new(Shared { words, windows: [Cell::new(0), Cell::new(0)] });
            let ranks = [0, 1].map(|rank: Rank| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.windows[rank as usize].with_mut(|memory| {
                        // SAFETY: the owner reads the window only after the signal.
                        unsafe { *memory = rank + 1 };
                    });
                    SignalWordsRef::new(&shared.words).add_signal(rank);
                })
            });
            for rank in [0, 1] {
                if SignalWordsRef::new(&shared.words).signals(rank) == 1 {
                    shared.windows[rank as usize].with(|memory| {
                        // SAFETY: the rank has signalled, and writes no more.
                        assert_eq!(unsafe { *memory }, rank + 1);
                    });
                }
            }
            for rank in ranks {
                rank.join().unwrap();
            }
        });
    }
}
