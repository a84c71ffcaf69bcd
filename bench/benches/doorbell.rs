//! Benchmark of the doorbell: the cost of a ring while no thread sleeps, and of waking one that
//! does.
//!
//! `cargo bench -p maypole-bench --bench doorbell`

use std::hint::black_box;
use std::thread::scope;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use maypole_transport::doorbell::Doorbell;
use maypole_transport::sync::{AtomicU64, Ordering, full_fence};

/// The news that ends the other thread.
const LAST: u64 = u64::MAX;

/// A word with news, and the doorbell that is rung for it.

#[derive(Default)]
struct Mailbox {
    doorbell: Doorbell,
    news: AtomicU64,
}

impl Mailbox {
    fn publish(&self, news: u64) {
        // Release, paired as `news`.
        self.news.store(news, Ordering::Release);
        self.doorbell.ring();
    }

    /// Sleeps until the news differ from `old`; returns them.
    fn await_news(&self, old: u64) -> u64 {
        let mut news = old;
        let woken = self.doorbell.wait(0, 0, Some(Duration::from_secs(60)), || {
            // Acquire, paired as `news`.
            news = self.news.load(Ordering::Acquire);
            news != old
        });
        assert!(woken, "a wake-up was lost");
        news
    }
}

fn benchmarks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("doorbell");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    let doorbell = Doorbell::default();
    group.bench_function("ring, nobody sleeps", |b| b.iter(|| black_box(&doorbell).ring()));
    group.bench_function("ring after a fence, nobody sleeps", |b| {
        full_fence();
        b.iter(|| black_box(&doorbell).ring_fenced());
    });
    group.bench_function("wait, the news is there", |b| {
        b.iter(|| black_box(&doorbell).wait(1, 0, None, || black_box(true)));
    });
    group.bench_function("prepare and ring, the news comes before sleep", |b| {
        b.iter(|| {
            let ticket = doorbell.prepare_to_sleep();
            doorbell.ring();
            drop(black_box(ticket));
        });
    });

    let (forward, back) = (Mailbox::default(), Mailbox::default());
    scope(|scope| {
        scope.spawn(|| {
            let mut news = 0;
            while news != LAST {
                news = forward.await_news(news);
                back.publish(news);
            }
        });
        let mut round = 0;
        group.bench_function("wake there and back, both sleep", |b| {
            b.iter(|| {
                forward.publish(round + 1);
                round = back.await_news(round);
            });
        });
        forward.publish(LAST);
    });
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
