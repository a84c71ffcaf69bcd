//! The rejoin listener: where the survivors of a communicator find each other for a shrink, when
//! connections of the control tree may be gone. Each rank keeps a listener from init on, whose
//! address all ranks know.

use std::net::TcpListener;
use std::thread::JoinHandle;

use maypole_control::codec::ByteReader;
use maypole_control::listener_addresses::ListenerAddresses;
use maypole_transport::noise::Key;

use super::abort::AbortSignal;
use super::error::BootstrapError;
use super::id::UniqueId;
use super::listener_address::{self, MOST_ADDRESS_BYTES};
use super::options::Options;
use super::root;

/// The rejoin listener of a rank. Connections are answered only after
/// [`start_root`](Self::start_root).
pub struct RejoinListener {
    listeners: Vec<TcpListener>,
    addresses: ListenerAddresses,
    /// The last root that was started here, and the signal that ends it. It may have ended.
    root: Option<(AbortSignal, JoinHandle<()>)>,
}

impl RejoinListener {
    /// Opens the listener.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if no socket can be made.
    pub fn open() -> Result<Self, BootstrapError> {
        let (listeners, addresses) = listener_address::listen()?;
        Ok(Self { listeners, addresses, root: None })
    }

    /// The address of the listener, for [`UniqueId::at_rejoin_listener`] on other ranks.
    pub fn address(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.addresses.encode(&mut bytes, MOST_ADDRESS_BYTES);
        bytes
    }

    /// Starts here the root of the communicator with this secret, and ends the one before: two
    /// roots could not tell which connection is for which. `survivors` are the
    /// [addresses](Self::address) of all of its ranks: one that has closed its listener cannot
    /// come, and need not be waited for. Without them all ranks are waited for.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if no thread or descriptor is left.
    pub fn start_root(
        &mut self,
        secret: &Key,
        survivors: &[Vec<u8>],
        options: &Options,
    ) -> Result<UniqueId, BootstrapError> {
        if let Some((stop, thread)) = self.root.take() {
            stop.abort();
            // A panic of that thread has been printed already.
            let _ = thread.join();
        }
        let listeners: Result<Vec<_>, _> =
            self.listeners.iter().map(TcpListener::try_clone).collect();
        let listeners = listeners.map_err(|error| BootstrapError::system("dup", &error))?;
        let stop = AbortSignal::new()?;
        let survivors = survivors.iter().map(|bytes| {
            // An address that cannot be read is never found to be gone.
            ListenerAddresses::decode(&mut ByteReader::new(bytes)).unwrap_or_default()
        });
        let (key, survivors) = (secret.clone(), survivors.collect());
        let thread = root::start(key, listeners, options, Some(stop.clone()), survivors)?;
        self.root = Some((stop, thread));
        Ok(UniqueId::at_listener(secret, &self.addresses))
    }
}

impl UniqueId {
    /// The id of the communicator with this secret whose root is at the rejoin listener at
    /// `address`. None if the bytes are not an address.
    pub fn at_rejoin_listener(address: &[u8], secret: &Key) -> Option<Self> {
        let root = ListenerAddresses::decode(&mut ByteReader::new(address))?;
        Some(Self::at_listener(secret, &root))
    }
}
