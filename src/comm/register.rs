//! Memory that peers read in place: mapped ahead of its first use, and what became of it.

use std::time::Duration;

use super::Communicator;
use crate::error::Error;
use crate::links::SlotTraffic;

/// How long to wait for peers to map what is registered.
const ANSWERS: Duration = Duration::from_millis(200);

impl Communicator {
    /// What this rank has sent, except by lines, which are small messages: what was copied, and what peers read in place.
    pub fn slot_traffic(&self) -> SlotTraffic {
        self.links.slot_traffic
    }

    /// Prepares the `bytes` bytes at `memory` for calls: peers of this host map them, if they are of a [`SharedBuffer`](crate::memory::SharedBuffer), so that
    /// the first call need not wait for that. False if they are not, and nothing was done: ordinary memory is copied. Every rank prepares its
    /// own memory, when it likes; connections are made if need be.
    ///
    /// # Errors
    /// A peer that cannot be connected to; the communicator is then broken.
    pub fn register(&mut self, memory: *const u8, bytes: usize) -> Result<bool, Error> {
        self.watch.check_fork()?;
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if !self.endpoint.share(memory, bytes) {
            return Ok(false);
        }
        let deadline = self.link_deadline();
        for peer in self.rank + 1..self.nranks {
            // Those below dial themselves.
            if self.endpoint.dials_over_shm(peer, &self.addresses[peer as usize])? {
                let Self { endpoint, addresses, links, watch, .. } = self;
                let connected = links.connect(endpoint, addresses, peer, deadline, watch);
                connected.map_err(|error| self.fail(error))?;
            }
        }
        // One that does not answer, as it is stopped, gets copies until it does.
        let bell = self.endpoint.doorbell();
        bell.wait(0, 0, Some(ANSWERS), || self.endpoint.is_shared(memory, bytes));
        Ok(true)
    }
}
