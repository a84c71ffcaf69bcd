//! What a communicator is doing, written by its own thread at the cost of a few plain stores, and
//! read by any other.
//!
//! Calls are numbered from 1, alike on all ranks that make the same calls. The last [`KEPT`] of
//! them are kept: the flight recorder, and the evidence when two ranks are suspected of making
//! different calls.

use core::sync::atomic::fence;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::call_signature::CallSignature;

/// Calls that are kept, a power of two.
pub(crate) const KEPT: u64 = 64;

/// The record of one communicator. It has one writer.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct FlightRecorder {
    /// Number of the current or last call, times two, plus one within the call.
    now: AtomicU64,
    /// Low half: one more than the rank that the call waits for; high half: low bits of the call's
    /// number.
    waits: AtomicU64,
    /// The last call that had a long wait.
    long: AtomicU64,
    ring: [Slot; KEPT as usize],
}

#[derive(Debug, Default)]
struct Slot {
    what: AtomicU64,
    count: AtomicU64,
    /// Written only if the call had a long wait, which the high 16 bits tell: they are the [`turn`]
    /// of its number. While it runs, nanoseconds of [`EPOCH`] at its first long wait; then how long
    /// it took from there, with [`ENDED`].
    time: AtomicU64,
}

const ENDED: u64 = 1 << 47;
/// Enough for a day and a half.
const NANOSECONDS: u64 = ENDED - 1;

/// How often the ring had gone round before call `sequence`, as far as 16 bits tell, and never 0.
fn turn(sequence: u64) -> u64 {
    (sequence / KEPT % 0xffff + 1) << 48
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One call of a [`RecorderSnapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordedCall {
    pub(crate) sequence: u64,
    pub(crate) signature: CallSignature,
    /// Of a call that ended: how long it took from its first long wait on, if it had one.
    pub(crate) took: Option<Duration>,
}

/// What a record held at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecorderSnapshot {
    /// Number of the current or last call; 0 before the first.
    pub(crate) sequence: u64,
    pub(crate) in_call: bool,
    pub(crate) waits_for: Option<Rank>,
    /// The last calls, oldest first.
    pub(crate) calls: Vec<RecordedCall>,
}

impl RecorderSnapshot {
    pub(crate) fn call(&self, sequence: u64) -> Option<CallSignature> {
        self.calls.iter().find(|call| call.sequence == sequence).map(|call| call.signature)
    }

    /// The current or last call, in words.
    pub(crate) fn last(&self) -> String {
        match self.call(self.sequence) {
            Some(call) => format!("call {}, {call}", self.sequence),
            None if self.sequence == 0 => String::from("no call yet"),
            None => format!("call {}", self.sequence),
        }
    }
}

impl Default for FlightRecorder {
    fn default() -> Self {
        Self {
            now: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            long: AtomicU64::new(0),
            ring: std::array::from_fn(|_| Slot::default()),
        }
    }
}

impl FlightRecorder {
    /// The writer enters call `sequence`, one more than the last.
    #[inline]
    pub(crate) fn begin(&self, sequence: u64, signature: CallSignature) {
        // Pairs with the fence in `read`: who sees a word of this call's slot sees that the call
        // before it has begun.
        fence(Ordering::Release);
        let slot = self.slot(sequence);
        slot.what.store(signature.what, Ordering::Relaxed);
        slot.count.store(signature.count, Ordering::Relaxed);
        // Pairs with the load in `read`: who sees the number sees the slot.
        self.now.store(sequence << 1 | 1, Ordering::Release);
    }

    /// The writer leaves call `sequence`.
    #[inline]
    pub(crate) fn end(&self, sequence: u64) {
        if self.long.load(Ordering::Relaxed) == sequence {
            self.end_long(sequence);
        }
        self.now.store(sequence << 1, Ordering::Release);
    }

    #[cold]
    fn end_long(&self, sequence: u64) {
        let time = &self.slot(sequence).time;
        let started = time.load(Ordering::Relaxed) & NANOSECONDS;
        let took = nanoseconds().saturating_sub(started) & NANOSECONDS;
        time.store(turn(sequence) | ENDED | took, Ordering::Relaxed);
    }

    /// Call `sequence`, which was begun, was refused: it never was.
    #[cold]
    pub(crate) fn retract(&self, sequence: u64) {
        self.now.store((sequence - 1) << 1, Ordering::Release);
    }

    /// The writer waits long, for `peer`; or no more.
    pub(crate) fn waits(&self, peer: Option<Rank>) {
        let sequence = self.now.load(Ordering::Relaxed) >> 1;
        let word = peer.map_or(0, |peer| sequence << 32 | (u64::from(peer) + 1));
        self.waits.store(word, Ordering::Relaxed);
        if peer.is_some() && self.long.swap(sequence, Ordering::Relaxed) != sequence {
            let time = turn(sequence) | (nanoseconds() & NANOSECONDS);
            self.slot(sequence).time.store(time, Ordering::Relaxed);
        }
    }

    /// By any thread.
    pub(crate) fn read(&self) -> RecorderSnapshot {
        // Pairs with the store in `begin`.
        let now = self.now.load(Ordering::Acquire);
        let sequence = now >> 1;
        let first = sequence.saturating_sub(KEPT - 1).max(1);
        let mut calls: Vec<RecordedCall> =
            (first..=sequence).map(|sequence| self.slot(sequence).read(sequence)).collect();
        let waits = self.waits.load(Ordering::Relaxed);
        // Pairs with the fence in `begin`: a slot that was written anew while it was read is known
        // by the number.
        fence(Ordering::Acquire);
        let later = self.now.load(Ordering::Relaxed) >> 1;
        calls.retain(|call| call.sequence + KEPT > later + 1);
        let in_call = now & 1 != 0;
        let waiting = in_call && waits >> 32 == sequence & 0xffff_ffff;
        let waits_for = ((waits as u32) != 0 && waiting).then(|| waits as u32 - 1);
        RecorderSnapshot { sequence, in_call, waits_for, calls }
    }

    /// How long the current call, `sequence`, has been in it since its first long wait, if it has
    /// had one.
    pub(crate) fn waited(&self, sequence: u64) -> Option<Duration> {
        let time = self.slot(sequence).time.load(Ordering::Relaxed);
        let known = time & !NANOSECONDS == turn(sequence);
        known.then(|| Duration::from_nanos(nanoseconds().saturating_sub(time & NANOSECONDS)))
    }

    #[inline]
    fn slot(&self, sequence: u64) -> &Slot {
        &self.ring[(sequence % KEPT) as usize]
    }
}

impl Slot {
    fn read(&self, sequence: u64) -> RecordedCall {
        let what = self.what.load(Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        let time = self.time.load(Ordering::Relaxed);
        let known = time & !NANOSECONDS == turn(sequence) | ENDED;
        let took = known.then(|| Duration::from_nanos(time & NANOSECONDS));
        RecordedCall { sequence, signature: CallSignature { what, count }, took }
    }
}

fn nanoseconds() -> u64 {
    EPOCH.elapsed().as_nanos() as u64
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
            record.begin(count, signature(count));
            record.end(count);
        }
        record.begin(101, signature(101));
        record.waits(Some(0));
        let seen = record.read();
        assert_eq!((seen.sequence, seen.in_call, seen.waits_for), (101, true, Some(0)));
        assert!(record.waited(101).is_some() && record.waited(100).is_none());
        // One slot fewer: a writer may be at it.
        assert_eq!(seen.calls.len() as u64, KEPT - 1);
        assert!(seen.calls.iter().all(|call| call.signature == signature(call.sequence)));
        record.end(101);
        let seen = record.read();
        assert_eq!((seen.in_call, seen.waits_for), (false, None));
        assert_eq!(record.waited(101), None);
        assert!(seen.calls.last().is_some_and(|call| call.took.is_some()));
        record.begin(102, signature(7));
        record.retract(102);
        assert_eq!(record.read().sequence, 101);
    }

    #[test]
    fn a_reader_never_sees_half_a_call() {
        const ROUNDS: u64 = 300_000;
        let record = FlightRecorder::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for count in 1..=ROUNDS {
                    record.begin(count, CallSignature { what: count, count });
                    record.end(count);
                }
            });
            while record.read().sequence < ROUNDS {
                for call in record.read().calls {
                    assert_eq!(
                        (call.signature.what, call.signature.count),
                        (call.sequence, call.sequence)
                    );
                }
            }
        });
    }
}
