//! Where ranks of a communicator meet again when their control tree can no longer be trusted to be whole: each rank keeps a
//! listener from init on, and all know where.

use std::net::TcpListener;
use std::thread::JoinHandle;

use super::abort::AbortSignal;
use super::address::{self, Reach};
use super::error::{BootstrapError, Options};
use super::id::UniqueId;
use super::root;
use super::secret::Secret;
use super::wire::Take;

/// A rank's own meeting place. Nobody is served there until [`host`](Self::host) is called.
pub struct RejoinListener {
    listeners: Vec<TcpListener>,
    reach: Reach,
    /// The last root that was started here; it may have ended.
    root: Option<(AbortSignal, JoinHandle<()>)>,
}

/// Most bytes of an encoded address.
const ROOM: usize = 79;

impl RejoinListener {
    /// Opens the place.
    ///
    /// # Errors
    /// [`BootstrapError::System`] where no socket can be had.
    pub fn open() -> Result<Self, BootstrapError> {
        let (listeners, reach) = address::listen()?;
        Ok(Self { listeners, reach, root: None })
    }

    /// Where it is, for [`UniqueId::at_rejoin_listener`] on other ranks.
    pub fn address(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reach.encode(&mut bytes, ROOM);
        bytes
    }

    /// Starts the root of the communicator that `secret` names, here, and ends the one before: two could not tell who comes for which.
    ///
    /// # Errors
    /// [`BootstrapError::System`] where no thread or descriptor can be had.
    pub fn host(
        &mut self,
        secret: [u8; 32],
        options: &Options,
    ) -> Result<UniqueId, BootstrapError> {
        if let Some((stop, thread)) = self.root.take() {
            stop.abort();
            // A panic there has been printed.
            let _ = thread.join();
        }
        let listeners: Result<Vec<_>, _> =
            self.listeners.iter().map(TcpListener::try_clone).collect();
        let listeners = listeners.map_err(|error| BootstrapError::system("dup", &error))?;
        let stop = AbortSignal::new()?;
        let thread = root::start(Secret::new(secret), listeners, options, Some(stop.clone()))?;
        self.root = Some((stop, thread));
        Ok(UniqueId::at(&secret, &self.reach))
    }
}

impl UniqueId {
    /// The id of the communicator that `secret` names and that is hosted at `address`; None if that is no address.
    pub fn at_rejoin_listener(address: &[u8], secret: [u8; 32]) -> Option<Self> {
        let reach = Reach::decode(&mut Take::new(address))?;
        Some(Self::at(&secret, &reach))
    }
}
