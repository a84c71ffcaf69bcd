//! -T: ends the process when one of its ranks makes no progress for too long. The others then see that it has ended.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Team;
use crate::status;

/// Counts the steps of the ranks of this process.
pub(super) struct Watchdog {
    first: u32,
    steps: Vec<AtomicU64>,
}

impl Watchdog {
    /// Counts for ranks `first..first + count`.
    pub(super) fn new(first: u32, count: u32) -> Self {
        Self { first, steps: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Watches the ranks of this process until it ends, if the options want it.
    pub(super) fn start(team: &Arc<Team>) {
        let seconds = team.options.timeout;
        if seconds > 0 {
            let team = Arc::clone(team);
            std::thread::spawn(move || team.watchdog.watch(Duration::from_secs(seconds)));
        }
    }

    /// The `member`th rank of this process has come one step further.
    #[inline]
    pub(super) fn step(&self, member: u32) {
        // Written by one thread and compared with itself: no order is needed.
        let steps = &self.steps[member as usize];
        steps.store(steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn watch(&self, patience: Duration) {
        let mut last: Vec<_> = self.steps.iter().map(|_| (0, Instant::now())).collect();
        loop {
            std::thread::sleep(patience / 10);
            for (rank, (steps, last)) in (self.first..).zip(self.steps.iter().zip(&mut last)) {
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
