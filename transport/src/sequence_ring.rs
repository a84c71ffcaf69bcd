//! A ring of the last records of one thread, which other threads can read at any time without
//! locks.
//!
//! This is a sequence lock over several records. The writer numbers its records from 1. To begin a
//! record it stores the words of the record, then the number. A reader loads the number, then the
//! words of the last records, then the number again, and drops the records that the writer may have
//! overwritten meanwhile. So the writer never waits, and pays a few plain stores for each record.

use crate::sync::{AtomicU64, Ordering, fence};

/// The last `SLOTS` records, each of `WORDS` words. It has one writer and any number of readers.
/// All zeros is a valid ring without records.
#[derive(Debug)]
pub struct SequenceRing<const SLOTS: usize, const WORDS: usize> {
    /// The number of the last record, times two, plus one while the record is open.
    state: AtomicU64,
    /// Record n is in slot n % SLOTS.
    slots: [[AtomicU64; WORDS]; SLOTS],
}

/// The state of a ring: its last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRecord {
    /// The number of the record; 0 before the first.
    pub sequence: u64,
    /// Whether the record has begun and not ended.
    pub is_open: bool,
}

impl<const SLOTS: usize, const WORDS: usize> Default for SequenceRing<SLOTS, WORDS> {
    fn default() -> Self {
        let slot = |_| core::array::from_fn(|_| AtomicU64::new(0));
        Self { state: AtomicU64::new(0), slots: core::array::from_fn(slot) }
    }
}

impl<const SLOTS: usize, const WORDS: usize> SequenceRing<SLOTS, WORDS> {
    /// Begins record `sequence`, which must be one more than the last. Only the writer may call
    /// this.
    #[inline]
    pub fn begin(&self, sequence: u64, words: [u64; WORDS]) {
        // Pairs as `ring-overwrite` with the fence in `read`: a reader that sees a word of this
        // record sees that the record before it has begun, and so drops the record that was in this
        // slot.
        fence(Ordering::Release);
        for (slot, word) in self.slot(sequence).iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
        // Pairs as `ring-record` with the load in `last`: a reader that sees the number sees the
        // words.
        self.state.store(sequence << 1 | 1, Ordering::Release);
    }

    /// Ends record `sequence`, the one that has begun. Only the writer may call this.
    #[inline]
    pub fn end(&self, sequence: u64) {
        // Pairs as `ring-record`.
        self.state.store(sequence << 1, Ordering::Release);
    }

    /// Removes record `sequence`, the one that has begun. Only the writer may call this.
    pub fn retract(&self, sequence: u64) {
        // Pairs as `ring-record`.
        self.state.store((sequence - 1) << 1, Ordering::Release);
    }

    /// The last record.
    #[inline]
    pub fn last(&self) -> LastRecord {
        // Pairs as `ring-record` with the stores of the writer.
        let state = self.state.load(Ordering::Acquire);
        LastRecord { sequence: state >> 1, is_open: state & 1 != 0 }
    }

    /// Reads the last record and the words of the last records that are kept, oldest first, with
    /// their numbers. One record fewer than there are slots is kept for certain, because the writer
    /// may be writing the next one.
    pub fn read(&self) -> (LastRecord, Vec<(u64, [u64; WORDS])>) {
        let last = self.last();
        let first = last.sequence.saturating_sub(SLOTS as u64 - 1).max(1);
        let words =
            |sequence| core::array::from_fn(|at| self.slot(sequence)[at].load(Ordering::Relaxed));
        let mut records: Vec<(u64, [u64; WORDS])> =
            (first..=last.sequence).map(|sequence| (sequence, words(sequence))).collect();
        // Pairs as `ring-overwrite` with the fence in `begin`.
        fence(Ordering::Acquire);
        let later = self.state.load(Ordering::Relaxed) >> 1;
        records.retain(|(sequence, _)| sequence + SLOTS as u64 > later + 1);
        (last, records)
    }

    #[inline]
    fn slot(&self, sequence: u64) -> &[AtomicU64; WORDS] {
        &self.slots[(sequence % SLOTS as u64) as usize]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_records_are_kept_in_order() {
        let ring = SequenceRing::<4, 2>::default();
        assert_eq!(ring.read(), (LastRecord { sequence: 0, is_open: false }, Vec::new()));
        for sequence in 1..=9 {
            ring.begin(sequence, [sequence, 10 * sequence]);
            ring.end(sequence);
        }
        ring.begin(10, [10, 100]);
        let (last, records) = ring.read();
        assert_eq!(last, LastRecord { sequence: 10, is_open: true });
        assert_eq!(records, [(8, [8, 80]), (9, [9, 90]), (10, [10, 100])]);
        ring.retract(10);
        assert_eq!(ring.last(), LastRecord { sequence: 9, is_open: false });
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        const ROUNDS: u64 = 300_000;
        let ring = SequenceRing::<64, 2>::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for sequence in 1..=ROUNDS {
                    ring.begin(sequence, [sequence; 2]);
                    ring.end(sequence);
                }
            });
            while ring.last().sequence < ROUNDS {
                for (sequence, words) in ring.read().1 {
                    assert_eq!(words, [sequence; 2]);
                }
            }
        });
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// The writer goes round a ring of two slots while a reader reads it: every record that is
    /// returned is whole.
    #[test]
    fn loom_a_reader_never_sees_half_a_record() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let ring = Arc::new(SequenceRing::<2, 2>::default());
            let writer = ring.clone();
            let handle = thread::spawn(move || {
                for sequence in 1..=3 {
                    writer.begin(sequence, [sequence; 2]);
                    writer.end(sequence);
                }
            });
            let (last, records) = ring.read();
            assert!(last.sequence <= 3);
            for (sequence, words) in records {
                assert_eq!(words, [sequence; 2]);
            }
            handle.join().unwrap();
        });
    }
}
