//! The slot protocol: nanoseconds per message, by its bytes, and lent.
//!
//! `cargo bench -p maypole-bench --bench slots`
//!
//! `one thread` has both ends, so that what they share stays in its cache: the instructions alone. `two threads` send one message to
//! and fro; one round is two messages. The payload is written where it says bytes, and never copied out: engines reduce from the slot.

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
/// What messages carry.
const TAG: u32 = 7;
/// What the last one carries.
const LAST: u32 = 8;

#[repr(C, align(64))]
struct Memory {
    slots: Cell<[[u8; SLOT]; DEPTH]>,
    headers: [SlotHeader; DEPTH],
    ack: AckWord,
    rank: RankHeader,
}

// SAFETY: all but the slots are words made to be shared, and the protocol says whose a slot is.
unsafe impl Sync for Memory {}

fn slots(criterion: &mut Criterion) {
    one_thread(&mut group(criterion, "slots, one thread"));
    two_threads(&mut group(criterion, "slots, two threads, to and fro"));
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
            // SAFETY: `data` outlives both ends, and nobody writes it.
            let lent = unsafe { sender.lend(data.as_ptr(), data.len(), TAG) };
            assert!(lent.expect("nobody aborts").is_some());
            assert!(receive(&mut receiver, data.len()));
            sender.released()
        });
    });
}

fn two_threads(group: &mut BenchmarkGroup<'_, WallTime>) {
    for bytes in SIZES {
        let (mut there, mut arrival) = ring();
        let (mut back, mut answer) = ring();
        scope(|scope| {
            scope.spawn(move || {
                while receive(&mut arrival, bytes) {
                    send(&mut back, bytes, TAG);
                }
            });
            group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
                b.iter(|| {
                    send(&mut there, bytes, TAG);
                    assert!(receive(&mut answer, bytes));
                });
            });
            send(&mut there, bytes, LAST);
        });
    }
}

/// Both ends of a ring of its own.
fn ring() -> (SlotSender, SlotReceiver) {
    // SAFETY: all zeros is an empty ring, no acknowledgement, and a rank that is there.
    let memory: Arc<Memory> = unsafe { Arc::new_zeroed().assume_init() };
    let place = SlotRingMemory {
        headers: memory.headers.as_ptr(),
        slots: memory.slots.with_mut(<*mut _>::cast),
        slot_bytes: SLOT,
        depth: DEPTH as u32,
        ack: &raw const memory.ack,
        same_process: true,
    };
    // SAFETY: the memory is as `place` says, kept by the pair, and has these two ends alone.
    unsafe {
        let pair = RankPair::new(&raw const memory.rank, &raw const memory.rank, 1, memory.clone());
        (SlotSender::new(place, pair.clone()), SlotReceiver::new(place, pair))
    }
}

fn send(sender: &mut SlotSender, bytes: usize, tag: u32) {
    let slot = until(|| sender.reserve().expect("nobody aborts"));
    // SAFETY: the slot is the sender's, and holds any message.
    unsafe { slot.data.write_bytes(black_box(3), bytes) };
    sender.send(bytes, tag);
}

/// Waits for a message, looks at its first byte and releases it; false if it is the last one.
fn receive(receiver: &mut SlotReceiver, bytes: usize) -> bool {
    let message = until(|| receiver.receive().expect("nobody aborts"));
    assert_eq!(message.len, bytes);
    // SAFETY: the message is not released.
    assert_eq!(unsafe { *message.data }, 3);
    receiver.release();
    message.tag != LAST
}

/// Polls; where the other thread has no core of its own, it gets this one.
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

criterion_group!(benches, slots);
criterion_main!(benches);
