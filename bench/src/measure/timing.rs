//! The measured loop of a benchmark: repeated calls and their times in one rank.

use std::time::{Duration, Instant};

use super::rank::RankBench;
use super::resources;
use crate::call_timing::time_calls;
use crate::operation::calls::WorkCalls;
use crate::status::Failure;

/// What one rank measured in one placement, out of place or in place.
#[derive(Clone, Debug, Default)]
pub(super) struct LoopTiming {
    /// Seconds per call.
    pub(super) seconds: f64,
    /// Seconds of processor time of this thread per call.
    pub(super) cpu: f64,
    /// Seconds of each iteration; empty unless the options want it.
    pub(super) iterations: Vec<f64>,
    /// Seconds of processor time of this process for the whole loop; 0 for all ranks of a process
    /// but its first.
    pub(super) process: f64,
}

impl RankBench<'_> {
    /// Makes the warm-up calls and the timed calls.
    pub(super) fn time(&mut self, calls: &WorkCalls) -> Result<LoopTiming, Failure> {
        for _ in 0..self.options().warmup {
            self.call(calls)?;
        }
        let first = self.thread.index == 0;
        if self.options().resources && first {
            resources::reset_peak();
        }
        self.thread.barrier()?;
        let process = resources::process_time();
        let cpu = resources::thread_time();
        let mut timing = LoopTiming::default();
        let spent = self.repeat(calls, &mut timing.iterations)?;
        let count = (self.options().iterations * self.options().calls) as f64;
        // Without iterations the time of one is shown as infinite, as by nccl-tests.
        let per_call = |spent: Duration| match count {
            0.0 => f64::INFINITY,
            count => spent.as_secs_f64() / count,
        };
        timing.seconds = per_call(spent);
        timing.cpu = per_call(resources::thread_time() - cpu);
        if first {
            timing.process = (resources::process_time() - process).as_secs_f64();
        }
        Ok(timing)
    }

    /// Makes the timed calls. Returns the measured time, and appends that of each iteration.
    fn repeat(&mut self, calls: &WorkCalls, times: &mut Vec<f64>) -> Result<Duration, Failure> {
        let (iterations, per_iteration) = (self.options().iterations, self.options().calls);
        if [1, 3].contains(&self.options().blocking) || self.options().fresh {
            return self.repeat_apart(calls, times);
        }
        if !self.options().times_iterations() {
            return time_calls(iterations * per_iteration, || self.call(calls));
        }
        // The iterations follow each other without a gap: each ends where the next begins.
        let start = Instant::now();
        let mut last = start;
        for _ in 0..iterations {
            for _ in 0..per_iteration {
                self.call(calls)?;
            }
            let now = Instant::now();
            times.push((now - last).as_secs_f64() / per_iteration as f64);
            last = now;
        }
        Ok(start.elapsed())
    }

    /// Makes the timed calls one by one, with barriers between them that are not timed.
    fn repeat_apart(
        &mut self,
        calls: &WorkCalls,
        times: &mut Vec<f64>,
    ) -> Result<Duration, Failure> {
        let (iterations, per_iteration) = (self.options().iterations, self.options().calls);
        let mut spent = Duration::ZERO;
        for _ in 0..iterations {
            let mut iteration = Duration::ZERO;
            for _ in 0..per_iteration {
                if self.options().fresh {
                    self.rewrite();
                    self.thread.barrier()?;
                }
                iteration += time_calls(1, || self.call(calls))?;
                if self.options().blocking == 1 {
                    self.thread.barrier()?;
                }
            }
            spent += iteration;
            if self.options().blocking == 3 {
                self.thread.barrier()?;
            }
            if self.options().times_iterations() {
                times.push(iteration.as_secs_f64() / per_iteration as f64);
            }
        }
        Ok(spent)
    }
}
