//! Benchmark of the LL protocol: nanoseconds per message, by message size.
//!
//! `cargo bench -p maypole-bench --bench ll`
//!
//! `one thread` holds both ends, so all lines stay in its cache: this measures only the
//! instructions. In `two threads`, a message goes to the other thread and back. One round is two
//! messages, each of which moves a cache line (or more) from one core to the other.

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
/// The tag of all messages but the last.
const TAG: u32 = 7;
/// The tag of the last message.
const LAST: u32 = 8;

fn benchmarks(criterion: &mut Criterion) {
    one_thread(&mut group(criterion, "LL, one thread"));
    two_threads(&mut group(criterion, "LL, two threads, there and back"));
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
        let (mut forward, mut arrival) = ring();
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
                    send(&mut forward, &from, bytes, TAG);
                    assert!(receive(&mut answer, &mut to, bytes));
                });
            });
            send(&mut forward, &from, bytes, LAST);
            assert_eq!(to[..bytes], from[..bytes]);
        });
    }
}

/// Both ends of a new ring.
fn ring() -> (LlSender, LlReceiver) {
    // SAFETY: all zeros is an empty ring, no acknowledgement, and a rank that is present.
    let memory: Arc<(LlRing, AckWord, RankHeader)> = unsafe { Arc::new_zeroed().assume_init() };
    // SAFETY: the pair keeps the memory alive, which has only these two ends.
    unsafe {
        let pair = RankPair::new(&raw const memory.2, &raw const memory.2, 1, memory.clone());
        let (ring, ack) = (&raw const memory.0, &raw const memory.1);
        (LlSender::new(ring, ack, pair.clone()), LlReceiver::new(ring, ack, pair))
    }
}

/// Sends a message as the engine does, including the doorbell.
fn send(sender: &mut LlSender, from: &[u8; LL_CAPACITY], bytes: usize, tag: u32) {
    until(|| sender.ready());
    // SAFETY: a slot is free, and `from` holds as many bytes as any message.
    unsafe { sender.write(black_box(from.as_ptr()), bytes, tag) };
    full_fence();
    sender.doorbell().ring_fenced();
}

/// Waits for a message and copies it; false if it is the last one.
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

/// Polls until it is ready. Yields now and then, in case both threads share a core.
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

criterion_group!(benches, benchmarks);
criterion_main!(benches);
