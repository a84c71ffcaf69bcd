//! Registers memory so that peers map it before its first use, and counts lent and copied bytes.

use std::time::Duration;

use super::Communicator;
use super::backend::HostBackend;
use crate::error::Error;
use crate::links::SlotTraffic;

/// How long to wait for peers to map what is registered. Peers that take longer get copies until
/// they have mapped it.
const MAPPING_PATIENCE: Duration = Duration::from_millis(200);

impl Communicator {
    /// The bytes that this rank has sent, except in LL messages: those that were copied, and those
    /// that peers read in place.
    pub fn slot_traffic(&self) -> SlotTraffic {
        self.host.links.slot_traffic
    }

    /// Prepares the `bytes` bytes at `memory` for calls: if they lie in a
    /// [`SharedBuffer`](crate::memory::SharedBuffer), peers on this host map them now, so that the
    /// first call need not wait for that. Connects to the peers for that. Returns false, and does
    /// nothing, for other memory, which is copied. Each rank registers its own memory, at any time.
    ///
    /// # Errors
    /// A peer that cannot be connected to; the communicator is then broken.
    pub fn register(&mut self, memory: *const u8, bytes: usize) -> Result<bool, Error> {
        self.host.control.check_fork()?;
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if !self.host.endpoint.share(memory, bytes) {
            return Ok(false);
        }
        let deadline = self.membership.link_deadline();
        for peer in self.rank + 1..self.nranks {
            // Ranks below this one connect to it themselves.
            if self.host.endpoint.dials_over_shm(peer, &self.host.addresses[peer as usize])? {
                let HostBackend { endpoint, addresses, links, control, .. } = &mut self.host;
                let connected = links.connect(endpoint, addresses, peer, deadline, control);
                connected.map_err(|error| self.fail(error))?;
            }
        }
        // A peer that does not answer gets copies until it does.
        let bell = self.host.endpoint.doorbell();
        bell.wait(0, 0, Some(MAPPING_PATIENCE), || self.host.endpoint.is_shared(memory, bytes));
        Ok(true)
    }
}
