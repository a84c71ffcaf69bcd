//! Benchmark of the slot protocol: nanoseconds per message, by message size, and for lent memory.
//!
//! `cargo bench -p maypole-bench --bench slots`
//!
//! `one thread` holds both ends, so shared words stay in its cache: this measures only the
//! instructions. In `two threads`, a message goes to the other thread and back; one round is two
//! messages. The sender writes the payload, and the receiver does not copy it, because the engine
//! reduces from the slot.

use std::hint::black_box;
use std::sync::Arc;
use std::thread::{scope, yield_now};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use maypole_transport::link::{ReceiveSlots, SendSlots};
use maypole_transport::ll::AckWord;
use maypole_transport::rank_header::{RankHeader, RankPair};
use maypole_transport::slots::{SlotHeader, SlotReceiver, SlotRingMemory, SlotSender};
use maypole_transport::sync::{Cell, spin_hint};

const SLOT: usize = 64 << 10;
const DEPTH: usize = 8;
const SIZES: [usize; 3] = [8, 4 << 10, SLOT];
/// The tag of all messages but the last.
const TAG: u32 = 7;
/// The tag of the last message.
const LAST: u32 = 8;

#[repr(C, align(64))]
struct BenchRing {
    slots: Cell<[[u8; SLOT]; DEPTH + 1]>,
    headers: [SlotHeader; DEPTH],
    ack: AckWord,
    rank: RankHeader,
}

// SAFETY: all fields but the slots are shared words, and the protocol decides who uses a slot.
unsafe impl Sync for BenchRing {}

fn benchmarks(criterion: &mut Criterion) {
    one_thread(&mut group(criterion, "slots, one thread"));
    two_threads(&mut group(criterion, "slots, two threads, there and back"));
}

fn one_thread(group: &mut BenchmarkGroup<'_, WallTime>) {
    for bytes in SIZES {
        let (mut sender, mut receiver) = ring();
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                send(&mut sender, bytes, TAG);
                assert!(receive(&mut receiver, bytes));
            });
        });
    }
    let (mut sender, mut receiver) = ring();
    let data = [3_u8; 64];
    group.bench_function("lent", |b| {
        b.iter(|| {
            // SAFETY: `data` outlives both ends and is not written.
            let lent = unsafe { sender.lend(data.as_ptr(), data.len(), TAG) };
            assert!(lent.expect("nobody aborts").is_some());
            assert!(receive(&mut receiver, data.len()));
            sender.released()
        });
    });
}

fn two_threads(group: &mut BenchmarkGroup<'_, WallTime>) {
    for bytes in SIZES {
        let (mut forward, mut arrival) = ring();
        let (mut back, mut answer) = ring();
        scope(|scope| {
            scope.spawn(move || {
                while receive(&mut arrival, bytes) {
                    send(&mut back, bytes, TAG);
                }
            });
            group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
                b.iter(|| {
                    send(&mut forward, bytes, TAG);
                    assert!(receive(&mut answer, bytes));
                });
            });
            send(&mut forward, bytes, LAST);
        });
    }
}

/// Both ends of a new ring.
fn ring() -> (SlotSender, SlotReceiver) {
    // SAFETY: all zeros is an empty ring, no acknowledgement, and a rank that is present.
    let memory: Arc<BenchRing> = unsafe { Arc::new_zeroed().assume_init() };
    let addresses = SlotRingMemory {
        headers: memory.headers.as_ptr(),
        slots: memory.slots.with_mut(<*mut _>::cast),
        slot_bytes: SLOT,
        depth: DEPTH as u32,
        ack: &raw const memory.ack,
        same_process: true,
    };
    // SAFETY: the memory is as the fields say, kept alive by the pair, and has only these two ends.
    unsafe {
        let pair = RankPair::new(&raw const memory.rank, &raw const memory.rank, 1, memory.clone());
        (SlotSender::new(addresses, pair.clone()), SlotReceiver::new(addresses, pair))
    }
}

fn send(sender: &mut SlotSender, bytes: usize, tag: u32) {
    let slot = until(|| sender.reserve().expect("nobody aborts"));
    // SAFETY: the slot is reserved and has room for every message.
    unsafe { slot.data.write_bytes(black_box(3), bytes) };
    sender.send(bytes, tag);
}

/// Waits for a message, checks its first byte and releases it; false if it is the last one.
fn receive(receiver: &mut SlotReceiver, bytes: usize) -> bool {
    let message = until(|| receiver.receive().expect("nobody aborts"));
    assert_eq!(message.len, bytes);
    // SAFETY: the message is not released.
    assert_eq!(unsafe { *message.data }, 3);
    receiver.release();
    message.tag != LAST
}

/// Polls until it is ready. Yields now and then, in case both threads share a core.
fn until<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    loop {
        for _ in 0..1000 {
            if let Some(found) = poll() {
                return found;
            }
            spin_hint();
        }
        yield_now();
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    group
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
