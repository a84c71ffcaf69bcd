//! `-T`: ends the process when one of its ranks makes no progress for too long. The launcher or the
//! control tree then ends the other processes.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::ProcessRun;
use crate::status;

/// A counter of one rank. It is the standard library's type, since the facade is in a crate that
/// this one does not import, and there is no order here that loom could check.
#[allow(clippy::disallowed_types)]
type StepCounter = std::sync::atomic::AtomicU64;

/// Counts the calls of the ranks of this process.
pub(super) struct Watchdog {
    /// The first rank of this process.
    first: u32,
    /// The number of calls that each rank has finished.
    steps: Vec<StepCounter>,
}

impl Watchdog {
    /// Counts for ranks `first..first + count`.
    pub(super) fn new(first: u32, count: u32) -> Self {
        Self { first, steps: (0..count).map(|_| StepCounter::new(0)).collect() }
    }

    /// Watches the ranks of this process until it ends, if the options ask for it.
    pub(super) fn start(run: &Arc<ProcessRun>) {
        let seconds = run.options.timeout;
        if seconds > 0 {
            let run = Arc::clone(run);
            std::thread::spawn(move || run.watchdog.watch(Duration::from_secs(seconds)));
        }
    }

    /// Counts one more call of the rank with this number in its process.
    #[inline]
    pub(super) fn count_step(&self, index: u32) {
        // Relaxed: one thread writes the counter, and it is compared only with its own past.
        let steps = &self.steps[index as usize];
        steps.store(steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn watch(&self, limit: Duration) {
        let mut last: Vec<_> = self.steps.iter().map(|_| (0, Instant::now())).collect();
        loop {
            std::thread::sleep(limit / 10);
            for (rank, (steps, last)) in (self.first..).zip(self.steps.iter().zip(&mut last)) {
                let steps = steps.load(Ordering::Relaxed);
                if steps != last.0 {
                    *last = (steps, Instant::now());
                } else if last.1.elapsed() >= limit {
                    let seconds = limit.as_secs();
                    eprintln!("maypole: rank {rank}: no progress for {seconds} s (-T {seconds})");
                    let _ = std::io::stdout().flush();
                    // SAFETY: _exit has no preconditions; it ends the process with all its threads.
                    unsafe { libc::_exit(i32::from(status::TIMEOUT)) };
                }
            }
        }
    }
}
