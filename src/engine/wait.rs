//! Waiting: spin briefly, yield, park. A waiting rank never holds a core that a peer needs.

use std::time::Duration;

use maypole_transport::doorbell::{Doorbell, Ticket};
use maypole_transport::endpoint::Endpoint;
use maypole_transport::error::LinkError;

use crate::error::Error;

/// The longest sleep. Everything that ends a wait rings the doorbell; this bounds the damage if something cannot any more.
const NAP: Duration = Duration::from_millis(500);

/// Polls between two looks at whether the wait is in vain.
const LOOK_EVERY: u32 = 256;

/// How long to spin and how often to yield before parking; fixed per communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Polls with a pause between them.
    pub(crate) spins: u32,
    /// Polls with a sched_yield between them.
    pub(crate) yields: u32,
}

impl Patience {
    /// For a node on which `ranks` ranks share `cores` cores. `spins` overrides the number of spins.
    pub(crate) fn new(ranks: usize, cores: usize, spins: Option<u32>) -> Self {
        // A futex sleep and wake-up costs about 5 us here and 50 us on a busy host: where every rank has a core, spin
        // for that long; where not, the peer needs this core before it can make progress.
        let alone = ranks <= cores;
        let automatic = if alone { 4000 } else { 20 };
        Self { spins: spins.unwrap_or(automatic), yields: if alone { 20 } else { 4 } }
    }
}

/// One wait, from the first unsuccessful poll to the next success.
pub(crate) struct Wait<'a> {
    endpoint: &'a Endpoint,
    patience: Patience,
    polls: u32,
    armed: Option<Ticket>,
}

impl<'a> Wait<'a> {
    /// A wait that has not begun.
    #[inline]
    pub(crate) fn new(endpoint: &'a Endpoint, patience: Patience) -> Self {
        Self { endpoint, patience, polls: 0, armed: None }
    }

    /// To be called after every unsuccessful poll; returns when it is time for the next one. `failed` says why the wait is in
    /// vain, if it is; it is asked now and then and before every sleep.
    #[inline]
    pub(crate) fn idle(&mut self, failed: impl FnOnce() -> Option<LinkError>) -> Result<(), Error> {
        let Patience { spins, yields } = self.patience;
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
            self.bell().park(ticket, Some(NAP));
        } else {
            // The bell is asked to ring before the last poll, so that no ring is lost.
            self.armed = Some(self.bell().prepare());
        }
        Ok(())
    }

    /// To be called after a successful poll: the next wait starts afresh.
    #[inline]
    pub(crate) fn over(&mut self) {
        self.polls = 0;
        self.armed = None;
    }

    fn bell(&self) -> &'a Doorbell {
        self.endpoint.doorbell()
    }
}
