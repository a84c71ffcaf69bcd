//! Waiting for peers: a rank spins briefly, yields, then sleeps on its doorbell, and on its sockets
//! if it can, so that it never holds a core that a peer needs.

use std::cell::Cell;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_control::long_wait::{LongWait, WaitStep};
use maypole_transport::endpoint::{Endpoint, EndpointTicket, ReadingGuard};
use maypole_transport::error::LinkError;

use crate::clock;
use crate::control::ControlPlane;
use crate::error::Error;
use crate::spin_policy::{QUICK_YIELD, SpinPolicy};

/// The longest sleep. Everything that ends a wait rings the doorbell; this bounds the delay where a
/// peer no longer can.
const MAX_SLEEP: Duration = Duration::from_millis(500);

/// Spins between two checks of whether the wait can still succeed.
const CHECK_INTERVAL: u32 = 256;

/// Spins between two looks at whether the ranks that share the cores leave one to this rank.
const LOOK_INTERVAL: u32 = 16;

thread_local! {
    /// Whether the last yield of this thread gave the core to somebody else.
    static CORE_WAS_WANTED: Cell<bool> = const { Cell::new(true) };
}

/// The state of one wait, from the first unsuccessful poll to the next successful one.
pub(crate) struct WaitLoop<'a> {
    endpoint: &'a Endpoint,
    spin_policy: SpinPolicy,
    watch: &'a ControlPlane,
    /// How often the wait has spun, and how often it has yielded.
    spins: u32,
    yields: u32,
    /// The last yield found that nobody wants the core, and no spins have followed it yet.
    core_is_free: bool,
    armed: Option<EndpointTicket<'a>>,
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
            spins: 0,
            yields: 0,
            core_is_free: false,
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
        let spins = self.armed.is_none() && self.may_spin();
        if spins {
            self.spins += 1;
            std::hint::spin_loop();
            if !self.spins.is_multiple_of(CHECK_INTERVAL) {
                return Ok(());
            }
        }
        if let Some(error) = self.endpoint.aborted().or_else(failed) {
            // What came before the failure counts, so there is one more poll.
            if std::mem::replace(&mut self.looks_again, true) {
                return Err(error.into());
            }
            return Ok(());
        }
        if spins {
            return Ok(());
        }
        if let Some(ticket) = self.armed.take() {
            let limit = self.prepare_sleep(awaited())?;
            ticket.sleep(limit);
        } else if self.yields < self.spin_policy.yields {
            let before = Instant::now();
            std::thread::yield_now();
            let time = before.elapsed();
            self.yields = self.spin_policy.after_yield(self.yields + 1, time);
            self.core_is_free = time < QUICK_YIELD;
            CORE_WAS_WANTED.set(!self.core_is_free);
            if self.yields == self.spin_policy.yields {
                // The sleep comes next.
                self.spins = self.spin_policy.spins;
            }
        } else {
            // The doorbell is armed before the last poll, so that no ring is lost.
            self.armed = Some(self.endpoint.prepare_to_sleep());
        }
        Ok(())
    }

    /// Whether the wait spins between the last poll and the next.
    #[inline]
    fn may_spin(&mut self) -> bool {
        let SpinPolicy { spins, shares_cores, .. } = self.spin_policy;
        if self.spins >= spins {
            return false;
        }
        if !shares_cores || !self.spins.is_multiple_of(LOOK_INTERVAL) || self.endpoint.has_core() {
            return true;
        }
        // Some other rank is awake. It may be asleep in another call, or use another core.
        let begins = self.spins == 0 && self.yields == 0;
        std::mem::take(&mut self.core_is_free) || begins && !CORE_WAS_WANTED.get()
    }

    /// Ends the wait after a successful poll; the next wait starts from the beginning.
    #[inline]
    pub(crate) fn reset(&mut self) {
        (self.spins, self.yields, self.core_is_free) = (0, 0, false);
        self.disarm();
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

    /// Takes back the announcement of a sleep, so that other ranks see that this one is awake.
    #[inline]
    fn disarm(&mut self) {
        if self.armed.take().is_some() {
            self.endpoint.doorbell().ring();
        }
    }
}

impl Drop for WaitLoop<'_> {
    fn drop(&mut self) {
        self.disarm();
    }
}
