//! The flight recorder: what a communicator is doing, and its last calls. The thread of the
//! communicator writes it with a few plain stores, and any thread can read it.
//!
//! Calls are numbered from 1, in the same way on all ranks that make the same calls. The last
//! [`KEPT`] calls are kept. They are also the evidence when two ranks may have made different
//! calls.

use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_control::activity::{MOST_CALLS, RecordedCall, RecorderSnapshot};
use maypole_control::call_signature::{COLLECTIVES, CallSignature};
use maypole_transport::sequence_ring::SequenceRing;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::clock;

/// The number of calls that are kept.
pub(crate) const KEPT: u64 = MOST_CALLS;

/// The flight recorder of one communicator. It has one writer.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct FlightRecorder {
    /// The calls: the two words of the signature of each, and the hash of all calls before it.
    calls: SequenceRing<{ KEPT as usize }, 3>,
    /// In the low half one more than the rank that the call waits for, in the high half the low
    /// bits of the number of that call.
    waits: AtomicU64,
    /// The number of the last call that had a long wait.
    long: AtomicU64,
    /// Per call that had a long wait: in the high 16 bits the [`turn`] of its number, by which a
    /// reader knows that the word belongs to the call. While the call runs, the other bits are the
    /// time of its first long wait, in nanoseconds of the [clock]. After its end they are
    /// [`ENDED`] and the time from the first long wait to the end.
    times: [AtomicU64; KEPT as usize],
    /// Per [code](CallSignature::code) of a collective: the number of calls that have begun.
    counts: [AtomicU64; COLLECTIVES],
}

/// Flag in `times`: the call has ended.
const ENDED: u64 = 1 << 47;
/// The bits of a time in nanoseconds: enough for a day and a half.
const NANOSECONDS: u64 = ENDED - 1;

/// How often the ring had gone round before call `sequence`, modulo 0xffff, in the high 16 bits;
/// never 0.
fn turn(sequence: u64) -> u64 {
    (sequence / KEPT % 0xffff + 1) << 48
}

impl Default for FlightRecorder {
    fn default() -> Self {
        Self {
            calls: SequenceRing::default(),
            waits: AtomicU64::new(0),
            long: AtomicU64::new(0),
            times: std::array::from_fn(|_| AtomicU64::new(0)),
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl FlightRecorder {
    /// Records that call `sequence` begins, which is one more than the last. `history` is the hash
    /// of all calls before it.
    #[inline]
    pub(crate) fn begin(&self, sequence: u64, signature: CallSignature, history: u64) {
        self.calls.begin(sequence, [signature.what, signature.count, history]);
        self.count(signature, 1);
    }

    /// Records that call `sequence` ends.
    #[inline]
    pub(crate) fn end(&self, sequence: u64) {
        if self.long.load(Ordering::Relaxed) == sequence {
            self.end_long(sequence);
        }
        self.calls.end(sequence);
    }

    #[cold]
    fn end_long(&self, sequence: u64) {
        let time = self.time(sequence);
        let started = time.load(Ordering::Relaxed) & NANOSECONDS;
        let took = nanoseconds().saturating_sub(started) & NANOSECONDS;
        time.store(turn(sequence) | ENDED | took, Ordering::Relaxed);
    }

    /// Removes call `sequence`, which has begun and was refused.
    #[cold]
    pub(crate) fn retract(&self, sequence: u64) {
        if let Some(signature) = self.read().call(sequence) {
            self.count(signature, u64::MAX);
        }
        self.calls.retract(sequence);
    }

    /// Adds `change` to the count of the collective.
    #[inline]
    fn count(&self, signature: CallSignature, change: u64) {
        let count = &self.counts[signature.code() % COLLECTIVES];
        count.store(count.load(Ordering::Relaxed).wrapping_add(change), Ordering::Relaxed);
    }

    /// Per [code](CallSignature::code) of a collective, the number of calls that have begun.
    pub(crate) fn counts(&self) -> [u64; COLLECTIVES] {
        std::array::from_fn(|code| self.counts[code].load(Ordering::Relaxed))
    }

    /// Records that the current call has waited long and waits for `peer`, or that the wait has
    /// ended.
    pub(crate) fn waits(&self, peer: Option<Rank>) {
        let sequence = self.calls.last().sequence;
        let word = peer.map_or(0, |peer| sequence << 32 | (u64::from(peer) + 1));
        self.waits.store(word, Ordering::Relaxed);
        if peer.is_some() && self.long.swap(sequence, Ordering::Relaxed) != sequence {
            let time = turn(sequence) | (nanoseconds() & NANOSECONDS);
            self.time(sequence).store(time, Ordering::Relaxed);
        }
    }

    /// What the recorder holds now. Any thread may call this.
    pub(crate) fn read(&self) -> RecorderSnapshot {
        let (last, records) = self.calls.read();
        let call = |(sequence, [what, count, history]): (u64, [u64; 3])| RecordedCall {
            sequence,
            signature: CallSignature { what, count },
            history,
            took: self.took(sequence),
        };
        let waits = self.waits.load(Ordering::Relaxed);
        let is_current = last.is_open && waits >> 32 == last.sequence & 0xffff_ffff;
        let waits_for = ((waits as u32) != 0 && is_current).then(|| waits as u32 - 1);
        RecorderSnapshot {
            sequence: last.sequence,
            in_call: last.is_open,
            waits_for,
            calls: records.into_iter().map(call).collect(),
        }
    }

    /// The time since the first long wait of call `sequence`, which has not ended. None if it had
    /// no long wait.
    pub(crate) fn waited(&self, sequence: u64) -> Option<Duration> {
        let time = self.time(sequence).load(Ordering::Relaxed);
        let is_of_call = time & !NANOSECONDS == turn(sequence);
        is_of_call.then(|| Duration::from_nanos(nanoseconds().saturating_sub(time & NANOSECONDS)))
    }

    /// The time from the first long wait of call `sequence` to its end. None if it has not ended or
    /// had no long wait.
    fn took(&self, sequence: u64) -> Option<Duration> {
        let time = self.time(sequence).load(Ordering::Relaxed);
        let is_of_call = time & !NANOSECONDS == turn(sequence) | ENDED;
        is_of_call.then(|| Duration::from_nanos(time & NANOSECONDS))
    }

    fn time(&self, sequence: u64) -> &AtomicU64 {
        &self.times[(sequence % KEPT) as usize]
    }
}

fn nanoseconds() -> u64 {
    clock::now().since_start().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(count: u64) -> CallSignature {
        CallSignature { what: 7 << 8, count }
    }

    #[test]
    fn the_last_calls_are_kept() {
        let record = FlightRecorder::default();
        assert_eq!(record.read(), RecorderSnapshot::default());
        for count in 1..=100 {
            record.begin(count, signature(count), 0);
            record.end(count);
        }
        record.begin(101, signature(101), 0);
        record.waits(Some(0));
        let snapshot = record.read();
        assert_eq!((snapshot.sequence, snapshot.in_call, snapshot.waits_for), (101, true, Some(0)));
        assert!(record.waited(101).is_some() && record.waited(100).is_none());
        // One call fewer than slots, because the writer may be writing the next one.
        assert_eq!(snapshot.calls.len() as u64, KEPT - 1);
        assert!(snapshot.calls.iter().all(|call| call.signature == signature(call.sequence)));
        record.end(101);
        let snapshot = record.read();
        assert_eq!((snapshot.in_call, snapshot.waits_for), (false, None));
        assert_eq!(record.waited(101), None);
        assert!(snapshot.calls.last().is_some_and(|call| call.took.is_some()));
        record.begin(102, signature(7), 0);
        assert_eq!(record.counts(), [102, 0, 0, 0, 0, 0, 0, 0]);
        record.retract(102);
        assert_eq!(record.read().sequence, 101);
        let broadcast = CallSignature { what: 3, count: 1 };
        record.begin(102, broadcast, 0);
        assert_eq!(record.counts(), [101, 0, 0, 1, 0, 0, 0, 0]);
    }
}
