//! The doorbell: what a ring costs where nobody sleeps, and what waking costs where somebody does.
//!
//! `cargo bench -p maypole-bench --bench doorbell`

use std::hint::black_box;
use std::thread::scope;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use maypole_transport::doorbell::Doorbell;
use maypole_transport::sync::{AtomicU64, Ordering, full_fence};

/// Tells the other thread to end.
const LAST: u64 = u64::MAX;

/// A word with news, and the bell that is rung for it.
#[derive(Default)]
struct Desk {
    bell: Doorbell,
    news: AtomicU64,
}

impl Desk {
    fn tell(&self, news: u64) {
        // Pairs as `news`.
        self.news.store(news, Ordering::Release);
        self.bell.ring();
    }

    /// Sleeps until there is other news than `old`.
    fn sleep(&self, old: u64) -> u64 {
        let mut news = old;
        let woken = self.bell.wait(0, 0, Some(Duration::from_secs(60)), || {
            // Pairs as `news`.
            news = self.news.load(Ordering::Acquire);
            news != old
        });
        assert!(woken, "a wake-up was lost");
        news
    }
}

fn doorbell(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("doorbell");
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    let bell = Doorbell::default();
    group.bench_function("ring, nobody sleeps", |b| b.iter(|| black_box(&bell).ring()));
    group.bench_function("ring after a fence, nobody sleeps", |b| {
        full_fence();
        b.iter(|| black_box(&bell).ring_fenced());
    });
    group.bench_function("wait, the news is there", |b| {
        b.iter(|| black_box(&bell).wait(1, 0, None, || black_box(true)));
    });
    group.bench_function("prepare and ring, the news comes before sleep", |b| {
        b.iter(|| {
            let ticket = bell.prepare_to_sleep();
            bell.ring();
            drop(black_box(ticket));
        });
    });

    let (there, back) = (Desk::default(), Desk::default());
    scope(|scope| {
        scope.spawn(|| {
            let mut news = 0;
            while news != LAST {
                news = there.sleep(news);
                back.tell(news);
            }
        });
        let mut round = 0;
        group.bench_function("wake to and fro, both sleep", |b| {
            b.iter(|| {
                there.tell(round + 1);
                round = back.sleep(round);
            });
        });
        there.tell(LAST);
    });
}

criterion_group!(benches, doorbell);
criterion_main!(benches);
