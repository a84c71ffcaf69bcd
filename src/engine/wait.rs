//! Waiting: spin briefly, yield, park. A waiting rank never holds a core that a peer needs.

use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::doorbell::{Doorbell, SleepTicket};
use maypole_transport::endpoint::{Endpoint, ReadingGuard};
use maypole_transport::error::LinkError;

use crate::control::ControlPlane;
use crate::error::Error;
use crate::spin_policy::SpinPolicy;

/// The longest sleep. Everything that ends a wait rings the doorbell; this bounds the damage if something cannot any more.
const NAP: Duration = Duration::from_millis(500);

/// Polls between two looks at whether the wait is in vain.
const LOOK_EVERY: u32 = 256;

/// One wait, from the first unsuccessful poll to the next success.
pub(crate) struct WaitLoop<'a> {
    endpoint: &'a Endpoint,
    spin_policy: SpinPolicy,
    watch: &'a ControlPlane,
    polls: u32,
    armed: Option<SleepTicket>,
    /// Since it sleeps now and then.
    long: Option<Long>,
}

struct Long {
    since: Instant,
    /// How long it may become before it is suspicious (again).
    report: Duration,
}

impl<'a> WaitLoop<'a> {
    /// A wait that has not begun.
    #[inline]
    pub(crate) fn new(
        endpoint: &'a Endpoint,
        spin_policy: SpinPolicy,
        watch: &'a ControlPlane,
    ) -> Self {
        Self { endpoint, spin_policy, watch, polls: 0, armed: None, long: None }
    }

    /// See [`Endpoint::reading`].
    pub(crate) fn reading(&self) -> ReadingGuard<'a> {
        self.endpoint.reading()
    }

    /// To be called after every unsuccessful poll; returns when it is time for the next one. `failed` says why the wait is in
    /// vain, if it is; it is asked now and then and before every sleep. `whom` says which rank it waits for.
    #[inline]
    pub(crate) fn idle(
        &mut self,
        failed: impl FnOnce() -> Option<LinkError>,
        whom: impl FnOnce() -> Option<Rank>,
    ) -> Result<(), Error> {
        let SpinPolicy { spins, yields } = self.spin_policy;
        self.polls += 1;
        if self.polls <= spins && !self.polls.is_multiple_of(LOOK_EVERY) {
            std::hint::spin_loop();
            return Ok(());
        }
        if let Some(error) = self.endpoint.aborted().or_else(failed) {
            return Err(error.into());
        }
        if self.polls <= spins + yields {
            std::thread::yield_now();
        } else if let Some(ticket) = self.armed.take() {
            let nap = self.sleepy(whom())?;
            self.bell().sleep(ticket, Some(nap));
        } else {
            // The bell is asked to ring before the last poll, so that no ring is lost.
            self.armed = Some(self.bell().prepare_to_sleep());
        }
        Ok(())
    }

    /// To be called after a successful poll: the next wait starts afresh.
    #[inline]
    pub(crate) fn over(&mut self) {
        self.polls = 0;
        self.armed = None;
        if self.long.take().is_some() {
            self.watch.set_waiting_for(None);
        }
    }

    /// Before every sleep: how long it may be.
    #[cold]
    fn sleepy(&mut self, whom: Option<Rank>) -> Result<Duration, Error> {
        let now = Instant::now();
        let report = self.watch.report_after();
        let long = self.long.get_or_insert(Long { since: now, report });
        self.watch.set_waiting_for(whom);
        let waited = now - long.since;
        if let Some(timeout) = self.watch.timeout()
            && waited >= timeout
        {
            return Err(self.watch.timeout_error(whom, waited));
        }
        if waited >= long.report {
            long.report = long.report.saturating_mul(2);
            if let Some(peer) = whom {
                self.watch.investigate(peer, long.since);
            }
        }
        let limits = [NAP, long.report - waited];
        let limit = self.watch.timeout().map_or(NAP, |timeout| timeout - waited);
        Ok(limits.into_iter().fold(limit, Duration::min))
    }

    fn bell(&self) -> &'a Doorbell {
        self.endpoint.doorbell()
    }
}
