//! What the service thread sees of a rank's work on its CUDA device: nobody waits for that on the host, so the thread looks now and
//! then whether it went wrong, as long as there is any.

use std::time::{Duration, Instant};

use maypole_algorithms::Rank;

use crate::control::flight_recorder::RecorderSnapshot;
use crate::control::member::{Member, Purpose};
use crate::control::verdict::Verdict;
use crate::device::signals::Signals;
use crate::error::Error;

/// How often the thread looks: soon after a launch, then ever more rarely, as long as nothing ends.
const SOON: Duration = Duration::from_millis(2);
/// The longest time between two looks.
const RARELY: Duration = Duration::from_millis(50);

/// Work on a device, as it was when the thread last looked.
pub(super) struct DeviceWork {
    /// When it looks again.
    pub(super) due: Instant,
    pause: Duration,
    /// Works that were over, and since when they are so many.
    finished: u64,
    since: Instant,
    /// After how long a wait it is reported next.
    report: Option<Duration>,
}

impl DeviceWork {
    /// There is some.
    pub(super) fn begin(now: Instant) -> Self {
        Self { due: now + SOON, pause: SOON, finished: 0, since: now, report: None }
    }

    /// Looks again later; how long nothing has ended.
    fn go_on(&mut self, now: Instant, signals: &Signals) -> Duration {
        let finished = signals.finished();
        if finished == self.finished {
            self.pause = (2 * self.pause).min(RARELY);
        } else {
            (self.finished, self.since, self.pause) = (finished, now, SOON);
            self.report = None;
        }
        self.due = now + self.pause;
        now - self.since
    }
}

impl Member {
    pub(super) fn look_at_device(&mut self, now: Instant) {
        let Some(work) = self.device.as_mut().filter(|work| work.due <= now) else { return };
        let Some(signals) = self.shared.device.get().cloned() else {
            self.device = None;
            return;
        };
        if let Some(trouble) = signals.trouble() {
            self.device = None;
            return match trouble {
                Error::Mismatch { ranks: [_, peer], what } => {
                    self.ask(Purpose::Mismatch { peer, fallback: what });
                }
                other => self.decide(Verdict::of(self.shared.rank, &other), None),
            };
        }
        if signals.is_aborted() {
            self.device = None;
            return;
        }
        if let Err(error) = signals.ask_device() {
            self.device = None;
            return self.decide(Verdict::of(self.shared.rank, &error.into()), None);
        }
        let waited = work.go_on(now, &signals);
        if signals.is_idle() {
            if signals.unwatch() {
                self.device = None;
            }
        } else if self.timeout.is_some_and(|timeout| waited >= timeout) {
            let (rank, what) = (self.shared.rank, self.shared.record.read().last());
            // Which rank is waited for only the device knows.
            let verdict = Verdict::Timeout { rank, peer: rank, what, waited };
            self.decide(verdict, None);
        } else if self.shared.nranks > 1 {
            self.look_at_long_wait(waited, now);
        }
    }

    /// A wait that is suspicious is reported. The host does not know for whom the kernel waits: a neighbour that left is asked for first,
    /// then one rank after the other.
    fn look_at_long_wait(&mut self, waited: Duration, now: Instant) {
        let Some(work) = &mut self.device else { return };
        let due = *work.report.get_or_insert(self.report);
        if waited < due {
            return;
        }
        work.report = Some(2 * due);
        let next = (self.shared.rank + 1) % self.shared.nranks;
        let first = self.left.first().copied().unwrap_or(next);
        self.suspect(first, now - waited);
    }

    fn is_on_device(&self) -> bool {
        self.shared.device.get().is_some()
    }

    /// How many calls are queued behind the one that waits: most calls are one work.
    pub(super) fn queued_behind(&self) -> u64 {
        let signals = self.shared.device.get();
        let under_way = signals.map_or(0, |it| it.launched().saturating_sub(it.finished()));
        under_way.saturating_sub(1)
    }

    /// Whether call `sequence` still waits. One on a device is over for the host when it is queued.
    pub(super) fn still_waits(&self, ours: &RecorderSnapshot, sequence: u64) -> bool {
        match self.shared.device.get() {
            Some(signals) => !signals.is_idle(),
            None => ours.sequence == sequence && ours.in_call,
        }
    }

    /// Whom to ask next where the rank that was asked has queued the call too, and so may be waiting itself.
    pub(super) fn next_to_ask(
        &self,
        chain: &[Rank],
        theirs: &RecorderSnapshot,
        sequence: u64,
    ) -> Option<Rank> {
        let asked = *chain.last()?;
        let next = (asked + 1) % self.shared.nranks;
        let on = self.is_on_device() && theirs.sequence >= sequence;
        (on && next != self.shared.rank).then_some(next)
    }
}
