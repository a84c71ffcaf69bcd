//! -T: ends the process when one of its ranks makes no progress for too long. The others then see that it has ended.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::status;

/// Counts the steps of the ranks of this process.
#[derive(Default)]
pub(crate) struct Watchdog {
    steps: Vec<AtomicU64>,
}

impl Watchdog {
    /// Watches ranks `first..first + count`, all of this process, until it ends; with `seconds` 0 it never bites.
    pub(crate) fn start(first: u32, count: u32, seconds: u64) -> Arc<Self> {
        let dog = Arc::new(Self { steps: (0..count).map(|_| AtomicU64::new(0)).collect() });
        if seconds > 0 {
            let dog = Arc::clone(&dog);
            std::thread::spawn(move || dog.watch(first, Duration::from_secs(seconds)));
        }
        dog
    }

    /// The rank, the `member`th of this process, has come one step further.
    pub(crate) fn step(&self, member: usize) {
        // Written by one thread and compared with itself: no order is needed.
        let steps = &self.steps[member];
        steps.store(steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn watch(&self, first: u32, patience: Duration) {
        let mut last: Vec<(u64, Instant)> =
            self.steps.iter().map(|_| (0, Instant::now())).collect();
        loop {
            std::thread::sleep(patience / 10);
            for (rank, (steps, last)) in (first..).zip(self.steps.iter().zip(&mut last)) {
                let steps = steps.load(Ordering::Relaxed);
                if steps != last.0 {
                    *last = (steps, Instant::now());
                } else if last.1.elapsed() >= patience {
                    let seconds = patience.as_secs();
                    eprintln!("maypole: rank {rank}: no progress for {seconds} s (-T {seconds})");
                    let _ = std::io::stdout().flush();
                    // SAFETY: ends the process, whatever its other threads do.
                    unsafe { libc::_exit(i32::from(status::TIMEOUT)) };
                }
            }
        }
    }
}
