//! The flag-line protocol: nanoseconds per message, by its bytes.
//!
//! `cargo bench -p maypole-bench --bench lines`
//!
//! `one thread` has both ends, so that all lines stay in its cache: the instructions alone. `two threads` send one message to and
//! fro; one round is two messages, each of them a cache line (or more) from core to core.

use std::hint::black_box;
use std::sync::Arc;
use std::thread::{scope, yield_now};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use maypole_transport::ll::{
    AckWord, LL_CAPACITY, LL_LINE_PAYLOAD, LlPoll, LlReceiver, LlRing, LlSender,
};
use maypole_transport::rank_header::{RankHeader, RankPair};
use maypole_transport::sync::{full_fence, spin_hint};

const SIZES: [usize; 4] = [8, LL_LINE_PAYLOAD, 512, LL_CAPACITY];
/// What messages carry.
const TAG: u32 = 7;
/// What the last one carries.
const LAST: u32 = 8;

fn lines(criterion: &mut Criterion) {
    one_thread(&mut group(criterion, "lines, one thread"));
    two_threads(&mut group(criterion, "lines, two threads, to and fro"));
}

fn one_thread(group: &mut BenchmarkGroup<'_, WallTime>) {
    for bytes in SIZES {
        let (mut sender, mut receiver) = ring();
        let (from, mut to) = ([3_u8; LL_CAPACITY], [0_u8; LL_CAPACITY]);
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                send(&mut sender, &from, bytes, TAG);
                assert!(receive(&mut receiver, &mut to, bytes));
                black_box(&mut to);
            });
        });
        assert_eq!(to[..bytes], from[..bytes]);
    }
}

fn two_threads(group: &mut BenchmarkGroup<'_, WallTime>) {
    for bytes in SIZES {
        let (mut there, mut arrival) = ring();
        let (mut back, mut answer) = ring();
        scope(|scope| {
            scope.spawn(move || {
                let mut data = [0_u8; LL_CAPACITY];
                while receive(&mut arrival, &mut data, bytes) {
                    send(&mut back, &data, bytes, TAG);
                }
            });
            let (from, mut to) = ([3_u8; LL_CAPACITY], [0_u8; LL_CAPACITY]);
            group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
                b.iter(|| {
                    send(&mut there, &from, bytes, TAG);
                    assert!(receive(&mut answer, &mut to, bytes));
                });
            });
            send(&mut there, &from, bytes, LAST);
            assert_eq!(to[..bytes], from[..bytes]);
        });
    }
}

/// Both ends of a ring of its own.
fn ring() -> (LlSender, LlReceiver) {
    // SAFETY: all zeros is an empty ring, no acknowledgement, and a rank that is there.
    let memory: Arc<(LlRing, AckWord, RankHeader)> = unsafe { Arc::new_zeroed().assume_init() };
    // SAFETY: the pair keeps the memory, which has these two ends alone.
    unsafe {
        let pair = RankPair::new(&raw const memory.2, &raw const memory.2, 1, memory.clone());
        let (ring, ack) = (&raw const memory.0, &raw const memory.1);
        (LlSender::new(ring, ack, pair.clone()), LlReceiver::new(ring, ack, pair))
    }
}

/// Sends a message as the engine does, the doorbell included.
fn send(sender: &mut LlSender, from: &[u8; LL_CAPACITY], bytes: usize, tag: u32) {
    until(|| sender.ready());
    // SAFETY: a slot is free, and `from` holds as many bytes as any message.
    unsafe { sender.write(black_box(from.as_ptr()), bytes, tag) };
    full_fence();
    sender.doorbell().ring_fenced();
}

/// Waits for a message, and takes it; false if it is the last one.
fn receive(receiver: &mut LlReceiver, to: &mut [u8; LL_CAPACITY], bytes: usize) -> bool {
    let mut found = LlPoll::Pending;
    until(|| {
        found = receiver.poll(bytes, TAG);
        found != LlPoll::Pending
    });
    if found != LlPoll::Ready {
        return false;
    }
    // SAFETY: the message has arrived, and `to` has room for any.
    unsafe { receiver.read(to.as_mut_ptr(), bytes) };
    receiver.release();
    true
}

/// Polls; where the other thread has no core of its own, it gets this one.
fn until(mut ready: impl FnMut() -> bool) {
    loop {
        for _ in 0..1000 {
            if ready() {
                return;
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

criterion_group!(benches, lines);
criterion_main!(benches);
