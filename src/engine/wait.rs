//! Waiting for peers: a rank spins briefly, yields, then sleeps on its doorbell, so that it never
//! holds a core that a peer needs.

use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_control::long_wait::{LongWait, WaitStep};
use maypole_transport::doorbell::{Doorbell, SleepTicket};
use maypole_transport::endpoint::{Endpoint, ReadingGuard};
use maypole_transport::error::LinkError;

use crate::clock;
use crate::control::ControlPlane;
use crate::error::Error;
use crate::spin_policy::SpinPolicy;

/// The longest sleep. Everything that ends a wait rings the doorbell; this bounds the delay where a
/// peer no longer can.
const MAX_SLEEP: Duration = Duration::from_millis(500);

/// Polls between two checks of whether the wait can still succeed.
const CHECK_INTERVAL: u32 = 256;

/// The state of one wait, from the first unsuccessful poll to the next successful one.
pub(crate) struct WaitLoop<'a> {
    endpoint: &'a Endpoint,
    spin_policy: SpinPolicy,
    watch: &'a ControlPlane,
    polls: u32,
    armed: Option<SleepTicket>,
    /// Present once the wait has slept.
    sleeping: Option<LongWait>,
    /// A failure was seen, and the messages are looked for once more.
    looks_again: bool,
}

impl<'a> WaitLoop<'a> {
    /// A wait that has not begun yet.
    #[inline]
    pub(crate) fn new(
        endpoint: &'a Endpoint,
        spin_policy: SpinPolicy,
        watch: &'a ControlPlane,
    ) -> Self {
        Self {
            endpoint,
            spin_policy,
            watch,
            polls: 0,
            armed: None,
            sleeping: None,
            looks_again: false,
        }
    }

    /// The endpoint whose links are waited for.
    pub(crate) fn endpoint(&self) -> &'a Endpoint {
        self.endpoint
    }

    /// See [`Endpoint::reading`].
    pub(crate) fn reading(&self) -> ReadingGuard<'a> {
        self.endpoint.reading()
    }

    /// Pauses after an unsuccessful poll; returns when it is time for the next poll. `failed` says
    /// why the wait cannot succeed, if so; it is called regularly and before every sleep. `awaited`
    /// names the rank that this rank waits for.
    #[inline]
    pub(crate) fn pause(
        &mut self,
        failed: impl FnOnce() -> Option<LinkError>,
        awaited: impl FnOnce() -> Option<Rank>,
    ) -> Result<(), Error> {
        let SpinPolicy { spins, yields } = self.spin_policy;
        self.polls += 1;
        if self.polls <= spins && !self.polls.is_multiple_of(CHECK_INTERVAL) {
            std::hint::spin_loop();
            return Ok(());
        }
        if let Some(error) = self.endpoint.aborted().or_else(failed) {
            // What came before the failure counts, so there is one more poll.
            if std::mem::replace(&mut self.looks_again, true) {
                return Err(error.into());
            }
            return Ok(());
        }
        if self.polls <= spins {
            std::hint::spin_loop();
        } else if self.polls <= spins.saturating_add(yields) {
            let before = Instant::now();
            std::thread::yield_now();
            self.polls = self.spin_policy.after_yield(self.polls, before.elapsed());
        } else if let Some(ticket) = self.armed.take() {
            let limit = self.prepare_sleep(awaited())?;
            self.doorbell().sleep(ticket, Some(limit));
        } else {
            // The doorbell is armed before the last poll, so that no ring is lost.
            self.armed = Some(self.doorbell().prepare_to_sleep());
        }
        Ok(())
    }

    /// Ends the wait after a successful poll; the next wait starts from the beginning.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.polls = 0;
        self.armed = None;
        self.looks_again = false;
        if self.sleeping.take().is_some() {
            self.watch.set_waiting_for(None);
        }
    }

    /// Reports the wait, if that is due, and returns how long the next sleep may be.
    ///
    /// # Errors
    /// The wait has lasted longer than the timeout that the user set.
    #[cold]
    fn prepare_sleep(&mut self, awaited: Option<Rank>) -> Result<Duration, Error> {
        let (now, timing) = (clock::now(), self.watch.timing());
        let wait = self.sleeping.get_or_insert_with(|| LongWait::begin(now, timing));
        self.watch.set_waiting_for(awaited);
        match wait.step(now, timing) {
            WaitStep::TimedOut { waited } => Err(self.watch.timeout_error(awaited, waited)),
            WaitStep::Sleep { limit, investigate } => {
                if let (Some(since), Some(peer)) = (investigate, awaited) {
                    self.watch.investigate(peer, since);
                }
                Ok(limit.min(MAX_SLEEP))
            }
        }
    }

    fn doorbell(&self) -> &'a Doorbell {
        self.endpoint.doorbell()
    }
}
