//! What a communicator is doing, written by its own thread at the cost of a few plain stores, and read by any other.
//!
//! Calls are numbered from 1, alike on all ranks that make the same calls. The last [`KEPT`] of them are kept: the flight
//! recorder, and the evidence when two ranks are suspected of making different calls.

use core::sync::atomic::fence;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use maypole_algorithms::{Collective, DType, Rank, RedOp};
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::call::{Extents, Task};

/// Calls that are kept, a power of two.
pub(crate) const KEPT: u64 = 64;

/// All that must be the same on all ranks of a call, in two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signature {
    /// From the low end: collective, type, operator and form, 8 bits each, and the root. In its place, where all ranks know the
    /// lengths of uneven blocks, a hash of those.
    pub(crate) what: u64,
    /// Elements per block; of all uneven blocks together, or 0 where not every rank knows them.
    pub(crate) count: u64,
}

/// In place of an operator.
const NO_OP: u64 = 0xff;

/// Forms of a collective.
const EVEN: u64 = 0;
const UNEVEN: u64 = 1;
const BARRIER: u64 = 2;

impl Signature {
    pub(crate) fn of(task: &Task) -> Self {
        let signature = Self::among(task.collective, task.dtype, task.reduction().op);
        match &task.extents {
            _ if task.barrier => Self { what: signature.what | BARRIER << 24, count: 1 },
            Extents::Even(count) => Self { count: *count as u64, ..signature },
            Extents::Vector(extents) => {
                let count = extents.iter().map(|e| e.len as u64).sum();
                let each = |hash, len: usize| Self { what: len as u64, count }.extend(hash);
                let hash = extents.iter().fold(0, |hash, extent| each(hash, extent.len)) >> 32;
                Self { what: signature.what | UNEVEN << 24 | hash << 32, count }
            }
        }
    }

    /// Of a call in which a rank knows only the lengths of its own blocks.
    pub(crate) fn of_pairs(collective: Collective, dtype: DType) -> Self {
        let signature = Self::among(collective, dtype, RedOp::Max);
        Self { what: signature.what | UNEVEN << 24, ..signature }
    }

    fn among(collective: Collective, dtype: DType, op: RedOp) -> Self {
        let (code, root) = match collective {
            Collective::AllReduce => (0, 0),
            Collective::ReduceScatter => (1, 0),
            Collective::AllGather => (2, 0),
            Collective::Broadcast { root } => (3, root),
            Collective::Reduce { root } => (4, root),
            Collective::AllToAll => (5, 0),
            Collective::Gather { root } => (6, root),
            Collective::Scatter { root } => (7, root),
        };
        let op = if collective.reduces() { op as u64 } else { NO_OP };
        Self { what: code | (dtype as u64) << 8 | op << 16 | u64::from(root) << 32, count: 0 }
    }

    /// The hash of a history to which this call is added: a multiply-xorshift step for each word.
    #[inline]
    pub(crate) fn extend(self, history: u64) -> u64 {
        let mixed = (history ^ self.what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32 ^ self.count).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }

    fn collective(self) -> Option<Collective> {
        let root = (self.what >> 32) as Rank;
        Some(match self.what & 0xff {
            0 => Collective::AllReduce,
            1 => Collective::ReduceScatter,
            2 => Collective::AllGather,
            3 => Collective::Broadcast { root },
            4 => Collective::Reduce { root },
            5 => Collective::AllToAll,
            6 => Collective::Gather { root },
            7 => Collective::Scatter { root },
            _ => return None,
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = DType::from_code((self.what >> 8 & 0xff) as i32);
        let (Some(collective), Some(dtype)) = (self.collective(), dtype) else {
            return f.write_str("a call that this version does not know");
        };
        let (name, upper) = (collective.name(), self.what >> 32);
        match self.what >> 24 & 0xff {
            EVEN => write!(f, "{collective} of {} {dtype}", self.count)?,
            BARRIER => return f.write_str("barrier"),
            UNEVEN if self.count > 0 => {
                write!(f, "{name}_v of {} {dtype} in blocks of lengths {upper:08x}", self.count)?;
            }
            UNEVEN => match collective.root() {
                Some(root) => write!(f, "{name}_v from/to rank {root} of {dtype}")?,
                None => write!(f, "{name}_v of {dtype}")?,
            },
            _ => return f.write_str("a call that this version does not know"),
        }
        match RedOp::ALL.get((self.what >> 16 & 0xff) as usize) {
            Some(op) => write!(f, " {op}"),
            None => Ok(()),
        }
    }
}

/// The record of one communicator. It has one writer.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Record {
    /// Number of the current or last call, times two, plus one within the call.
    now: AtomicU64,
    /// Low half: one more than the rank that the call waits for; high half: low bits of the call's number.
    waits: AtomicU64,
    /// The last call that had a long wait.
    long: AtomicU64,
    ring: [Slot; KEPT as usize],
}

#[derive(Debug, Default)]
struct Slot {
    what: AtomicU64,
    count: AtomicU64,
    /// Written only if the call had a long wait, which the high 16 bits tell: they are the [`turn`] of its number. While it
    /// runs, nanoseconds of [`EPOCH`] at its first long wait; then how long it took from there, with [`ENDED`].
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

/// One call of a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) sequence: u64,
    pub(crate) signature: Signature,
    /// Of a call that ended: how long it took from its first long wait on, if it had one.
    pub(crate) took: Option<Duration>,
}

/// What a record held at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Number of the current or last call; 0 before the first.
    pub(crate) sequence: u64,
    pub(crate) in_call: bool,
    pub(crate) waits_for: Option<Rank>,
    /// The last calls, oldest first.
    pub(crate) calls: Vec<Recorded>,
}

impl Snapshot {
    pub(crate) fn call(&self, sequence: u64) -> Option<Signature> {
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

impl Default for Record {
    fn default() -> Self {
        Self {
            now: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            long: AtomicU64::new(0),
            ring: std::array::from_fn(|_| Slot::default()),
        }
    }
}

impl Record {
    /// The writer enters call `sequence`, one more than the last.
    #[inline]
    pub(crate) fn begin(&self, sequence: u64, signature: Signature) {
        // Pairs with the fence in `read`: who sees a word of this call's slot sees that the call before it has begun.
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
    pub(crate) fn read(&self) -> Snapshot {
        // Pairs with the store in `begin`.
        let now = self.now.load(Ordering::Acquire);
        let sequence = now >> 1;
        let first = sequence.saturating_sub(KEPT - 1).max(1);
        let mut calls: Vec<Recorded> =
            (first..=sequence).map(|sequence| self.slot(sequence).read(sequence)).collect();
        let waits = self.waits.load(Ordering::Relaxed);
        // Pairs with the fence in `begin`: a slot that was written anew while it was read is known by the number.
        fence(Ordering::Acquire);
        let later = self.now.load(Ordering::Relaxed) >> 1;
        calls.retain(|call| call.sequence + KEPT > later + 1);
        let in_call = now & 1 != 0;
        let waiting = in_call && waits >> 32 == sequence & 0xffff_ffff;
        let waits_for = ((waits as u32) != 0 && waiting).then(|| waits as u32 - 1);
        Snapshot { sequence, in_call, waits_for, calls }
    }

    /// How long the current call, `sequence`, has been in it since its first long wait, if it has had one.
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
    fn read(&self, sequence: u64) -> Recorded {
        let what = self.what.load(Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        let time = self.time.load(Ordering::Relaxed);
        let known = time & !NANOSECONDS == turn(sequence) | ENDED;
        let took = known.then(|| Duration::from_nanos(time & NANOSECONDS));
        Recorded { sequence, signature: Signature { what, count }, took }
    }
}

fn nanoseconds() -> u64 {
    EPOCH.elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Extent;

    fn signature(count: u64) -> Signature {
        Signature { what: 7 << 8, count }
    }

    #[test]
    fn the_last_calls_are_kept() {
        let record = Record::default();
        assert_eq!(record.read(), Snapshot::default());
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
        let record = Record::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for count in 1..=ROUNDS {
                    record.begin(count, Signature { what: count, count });
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

    #[test]
    fn calls_read_like_prose() {
        let task = Task {
            collective: Collective::Broadcast { root: 3 },
            extents: Extents::Even(5),
            dtype: DType::Int32,
            reduction: RedOp::Sum.into(),
            barrier: false,
        };
        let text = |task: &Task| Signature::of(task).to_string();
        assert_eq!(text(&task), "broadcast from/to rank 3 of 5 int32");
        let task = Task { collective: Collective::AllReduce, ..task };
        assert_eq!(text(&task), "all_reduce of 5 int32 sum");
        assert_eq!(text(&Task::barrier()), "barrier");
        let uneven = |lens: [usize; 2]| Task {
            collective: Collective::ReduceScatter,
            extents: Extents::Vector(lens.map(|len| Extent { start: 0, len }).into()),
            ..task.clone()
        };
        let (one, other) = (text(&uneven([3, 4])), text(&uneven([4, 3])));
        assert!(one.starts_with("reduce_scatter_v of 7 int32 in blocks of lengths "), "{one}");
        assert!(one.ends_with(" sum") && one != other, "{one}, {other}");
        let pairs = |collective| Signature::of_pairs(collective, DType::Int8).to_string();
        assert_eq!(pairs(Collective::AllToAll), "alltoall_v of int8");
        assert_eq!(pairs(Collective::Gather { root: 2 }), "gather_v from/to rank 2 of int8");
    }
}
