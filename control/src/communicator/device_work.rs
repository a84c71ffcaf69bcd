//! Watching the work of a rank on its CUDA device. No thread of the host waits for that work, so
//! the service thread checks now and then, as long as there is work, whether it has failed or takes
//! long.

use std::time::Duration;

use super::{CommunicatorCore, ControlOutput, DeviceProgress, LocalFacts};
use crate::time::Time;
use crate::verdict::Verdict;

/// The time from a launch to the first check. It doubles with each check, as long as no work ends.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest time between two checks.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The work on a device, as it was at the last check.
#[derive(Debug)]
pub(super) struct DeviceWork {
    /// When the next check is due. None while the answer to a check is awaited.
    pub(super) due: Option<Time>,
    pause: Duration,
    /// How many pieces of work had ended, and since when it is that number.
    finished: u64,
    since: Time,
    /// The length of a wait at which it is investigated next.
    report: Option<Duration>,
}

impl DeviceWork {
    /// Begins to check.
    pub(super) fn begin(now: Time) -> Self {
        Self {
            due: Some(now + FIRST_PAUSE),
            pause: FIRST_PAUSE,
            finished: 0,
            since: now,
            report: None,
        }
    }

    /// Sets when the next check is due. Returns for how long no work has ended.
    fn schedule_next(&mut self, now: Time, progress: DeviceProgress) -> Duration {
        if progress.finished == self.finished {
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            (self.finished, self.since, self.pause) = (progress.finished, now, FIRST_PAUSE);
            self.report = None;
        }
        self.due = Some(now + self.pause);
        now.since(self.since)
    }
}

impl CommunicatorCore {
    /// Asks for a check of the device, if one is due.
    pub(super) fn device_tick(&mut self, now: Time) {
        if let Some(work) = self.device.as_mut()
            && work.due.take_if(|due| *due <= now).is_some()
        {
            self.outputs.push_back(ControlOutput::CheckDevice);
        }
    }

    /// Continues with what a check of the device has found.
    pub(super) fn device_checked(
        &mut self,
        progress: Option<DeviceProgress>,
        facts: &impl LocalFacts,
    ) {
        let Some(progress) = progress else {
            self.device = None;
            return;
        };
        let Some(work) = &mut self.device else { return };
        let waited = work.schedule_next(self.now, progress);
        if progress.is_idle() {
            return;
        }
        if self.timing.timeout.is_some_and(|timeout| waited >= timeout) {
            let (rank, what) = (self.rank, facts.snapshot().last());
            // Only the device knows which rank the work waits for.
            self.decide(Verdict::Timeout { rank, peer: rank, what, waited }, None);
        } else if self.nranks > 1 {
            self.check_long_wait(waited, facts);
        }
    }

    /// Investigates a long wait. The host does not know for which rank the kernel waits: it asks a
    /// neighbour that has left first, and otherwise one rank after the other.
    fn check_long_wait(&mut self, waited: Duration, facts: &impl LocalFacts) {
        let Some(work) = &mut self.device else { return };
        let due = *work.report.get_or_insert(self.timing.report);
        if waited < due {
            return;
        }
        work.report = Some(due.saturating_mul(2));
        let since = work.since;
        let next = (self.rank + 1) % self.nranks;
        let first = self.departures.first().map_or(next, |&(rank, _)| rank);
        self.investigate(first, since, facts);
    }
}
