//! Checking the work of a rank on its CUDA device. No thread of the host waits for that work, so
//! the service thread checks now and then, as long as there is work, whether it has failed or takes
//! long.

use std::time::{Duration, Instant};

use maypole_algorithms::Rank;

use super::ServedCommunicator;
use super::inquiry::InquiryPurpose;
use crate::control::flight_recorder::RecorderSnapshot;
use crate::control::verdict::Verdict;
use crate::device::memory::signals::DeviceSignals;
use crate::error::Error;

/// The time from a launch to the first check. It doubles with each check, as long as no work ends.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest time between two checks.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The work on a device, as it was at the last check.
pub(super) struct DeviceWork {
    /// When the next check is due.
    pub(super) due: Instant,
    pause: Duration,
    /// How many pieces of work had ended, and since when it is that number.
    finished: u64,
    since: Instant,
    /// The length of a wait at which it is investigated next.
    report: Option<Duration>,
}

impl DeviceWork {
    /// Begins to check.
    pub(super) fn begin(now: Instant) -> Self {
        Self { due: now + FIRST_PAUSE, pause: FIRST_PAUSE, finished: 0, since: now, report: None }
    }

    /// Sets when the next check is due. Returns for how long no work has ended.
    fn schedule_next(&mut self, now: Instant, signals: &DeviceSignals) -> Duration {
        let finished = signals.finished();
        if finished == self.finished {
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            (self.finished, self.since, self.pause) = (finished, now, FIRST_PAUSE);
            self.report = None;
        }
        self.due = now + self.pause;
        now - self.since
    }
}

impl ServedCommunicator {
    /// Checks the work on the device, if a check is due.
    pub(super) fn check_device(&mut self, now: Instant) {
        let Some(work) = self.device.as_mut().filter(|work| work.due <= now) else { return };
        let Some(signals) = self.shared.device.get().cloned() else {
            self.device = None;
            return;
        };
        if let Some(failure) = signals.kernel_error() {
            self.device = None;
            return match failure {
                Error::Mismatch { ranks: [_, peer], what } => {
                    self.ask(InquiryPurpose::Mismatch { peer, fallback: what });
                }
                other => self.decide(Verdict::of(self.shared.rank, &other), None),
            };
        }
        if signals.is_aborted() {
            self.device = None;
            return;
        }
        if let Err(error) = signals.query_device() {
            self.device = None;
            return self.decide(Verdict::of(self.shared.rank, &error.into()), None);
        }
        let waited = work.schedule_next(now, &signals);
        if signals.is_idle() {
            if signals.unwatch() {
                self.device = None;
            }
        } else if self.timeout.is_some_and(|timeout| waited >= timeout) {
            let (rank, what) = (self.shared.rank, self.shared.record.read().last());
            // Only the device knows which rank the work waits for.
            let verdict = Verdict::Timeout { rank, peer: rank, what, waited };
            self.decide(verdict, None);
        } else if self.shared.nranks > 1 {
            self.check_long_wait(waited, now);
        }
    }

    /// Investigates a long wait. The host does not know for which rank the kernel waits: it asks a
    /// neighbour that has left first, and otherwise one rank after the other.
    fn check_long_wait(&mut self, waited: Duration, now: Instant) {
        let Some(work) = &mut self.device else { return };
        let due = *work.report.get_or_insert(self.report);
        if waited < due {
            return;
        }
        work.report = Some(2 * due);
        let next = (self.shared.rank + 1) % self.shared.nranks;
        let first = self.left.first().copied().unwrap_or(next);
        self.investigate(first, now - waited);
    }

    fn is_on_device(&self) -> bool {
        self.shared.device.get().is_some()
    }

    /// How many calls are queued behind the one that waits. Most calls are one piece of work.
    pub(super) fn queued_behind(&self) -> u64 {
        let signals = self.shared.device.get();
        let unfinished = signals.map_or(0, |it| it.launched().saturating_sub(it.finished()));
        unfinished.saturating_sub(1)
    }

    /// Whether call `sequence` still waits. For the host a call on a device ends when it is queued.
    pub(super) fn still_waits(&self, ours: &RecorderSnapshot, sequence: u64) -> bool {
        match self.shared.device.get() {
            Some(signals) => !signals.is_idle(),
            None => ours.sequence == sequence && ours.in_call,
        }
    }

    /// The next rank to ask if the rank that was asked has queued the call too, and so may wait
    /// itself.
    pub(super) fn next_on_device(
        &self,
        chain: &[Rank],
        snapshot: &RecorderSnapshot,
        sequence: u64,
    ) -> Option<Rank> {
        let asked = *chain.last()?;
        let next = (asked + 1) % self.shared.nranks;
        let also_queued = self.is_on_device() && snapshot.sequence >= sequence;
        (also_queued && next != self.shared.rank).then_some(next)
    }
}
