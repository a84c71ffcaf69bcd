//! The measured loop.

use std::time::{Duration, Instant};

use super::rank::Bench;
use super::resources;
use crate::operation::steps::Steps;
use crate::status::Failure;

/// What a rank has measured of one placement.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    /// Seconds per call.
    pub(super) seconds: f64,
    /// Seconds of this thread's processor per call.
    pub(super) cpu: f64,
    /// Seconds of each iteration, if wanted.
    pub(super) iterations: Vec<f64>,
    /// Seconds of this process' processors for the whole loop; 0 for all ranks of a process but its first.
    pub(super) process: f64,
}

impl Bench<'_> {
    /// Calls again and again, and takes the time.
    pub(super) fn time(&mut self, steps: &Steps) -> Result<Timing, Failure> {
        for _ in 0..self.options().warmup {
            self.call(steps)?;
        }
        let first = self.member.index == 0;
        if self.options().resources && first {
            resources::reset_peak();
        }
        self.member.barrier()?;
        let process = resources::process_time();
        let cpu = resources::thread_time();
        let mut timing = Timing::default();
        let spent = self.repeat(steps, &mut timing.iterations)?;
        let calls = (self.options().iterations * self.options().calls) as f64;
        timing.seconds = spent.as_secs_f64() / calls;
        timing.cpu = (resources::thread_time() - cpu).as_secs_f64() / calls;
        if first {
            timing.process = (resources::process_time() - process).as_secs_f64();
        }
        Ok(timing)
    }

    fn repeat(&mut self, steps: &Steps, times: &mut Vec<f64>) -> Result<Duration, Failure> {
        let (iterations, calls) = (self.options().iterations, self.options().calls);
        let fresh = self.options().fresh;
        if self.options().blocking == 1 || fresh {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let mut iteration = Duration::ZERO;
                for _ in 0..calls {
                    if fresh {
                        self.rewrite();
                        self.member.barrier()?;
                    }
                    let start = Instant::now();
                    self.call(steps)?;
                    iteration += start.elapsed();
                    self.member.barrier()?;
                }
                spent += iteration;
                if self.options().times_iterations() {
                    times.push(iteration.as_secs_f64() / calls as f64);
                }
            }
            return Ok(spent);
        }
        let start = Instant::now();
        if self.options().times_iterations() {
            let mut last = start;
            for _ in 0..iterations {
                for _ in 0..calls {
                    self.call(steps)?;
                }
                let now = Instant::now();
                times.push((now - last).as_secs_f64() / calls as f64);
                last = now;
            }
        } else {
            for _ in 0..iterations * calls {
                self.call(steps)?;
            }
        }
        Ok(start.elapsed())
    }
}
