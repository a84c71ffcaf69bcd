//! A long wait of a rank in a call: when it is reported, when it is an error, and when a failure
//! ends it.

use std::time::Duration;

use crate::communicator::ControlTiming;
use crate::time::Time;

/// A wait, from the first sleep to its end.
#[derive(Clone, Copy, Debug)]
pub struct LongWait {
    since: Time,
    /// The length of the wait at which it is reported next.
    next_report: Duration,
}

/// How a long wait goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStep {
    /// Sleep for at most this time.
    Sleep {
        /// The time.
        limit: Duration,
        /// The wait is to be investigated; it began at this time.
        investigate: Option<Time>,
    },
    /// The wait has lasted longer than the user allows.
    TimedOut {
        /// How long it has lasted.
        waited: Duration,
    },
}

impl LongWait {
    /// A wait that begins now.
    pub fn begin(now: Time, timing: &ControlTiming) -> Self {
        Self { since: now, next_report: timing.report }
    }

    /// How the wait goes on, which has not been successful until now.
    pub fn step(&mut self, now: Time, timing: &ControlTiming) -> WaitStep {
        let waited = now.since(self.since);
        if let Some(timeout) = timing.timeout
            && waited >= timeout
        {
            return WaitStep::TimedOut { waited };
        }
        let mut investigate = None;
        if waited >= self.next_report {
            investigate = Some(self.since);
            // A rank that was stopped, or a clock that jumped, may have passed several reports.
            while self.next_report <= waited {
                let doubled = self.next_report.saturating_mul(2);
                self.next_report = doubled.max(Duration::from_millis(1));
            }
        }
        let left = timing.timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(waited));
        let limit = left.min(self.next_report.saturating_sub(waited));
        WaitStep::Sleep { limit, investigate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_reported_at_doubling_times_and_survives_jumps_of_the_clock() {
        let seconds = Duration::from_secs;
        let timing =
            ControlTiming { report: seconds(10), timeout: Some(seconds(100)), compare: seconds(1) };
        let at = |time| Time::after_start(seconds(time));
        let mut wait = LongWait::begin(at(5), &timing);
        let sleep = |limit, since: Option<u64>| WaitStep::Sleep {
            limit: seconds(limit),
            investigate: since.map(at),
        };
        assert_eq!(wait.step(at(5), &timing), sleep(10, None));
        assert_eq!(wait.step(at(15), &timing), sleep(10, Some(5)));
        assert_eq!(wait.step(at(16), &timing), sleep(9, None));
        // The rank was stopped for longer than twice the time of a report; then the clock goes
        // back.
        assert_eq!(wait.step(at(65), &timing), sleep(20, Some(5)));
        assert_eq!(wait.step(at(0), &timing), sleep(80, None));
        assert_eq!(wait.step(at(106), &timing), WaitStep::TimedOut { waited: seconds(101) });
    }
}
