//! Making unique ids, and starting their bootstrap roots.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use maypole_control::codec::ByteReader;
use maypole_control::listener_addresses::{ListenerAddresses, MOST_ADDRESSES};
use maypole_transport::noise::Key;

use super::error::BootstrapError;
use super::id::UniqueId;
use super::listener_address::{self, MOST_ADDRESS_BYTES};
use super::options::Options;
use super::root;
use crate::config::{Config, HostPort};
use crate::secret_file;

impl UniqueId {
    /// Makes an id and starts its bootstrap root: a thread of this process that ends when all ranks
    /// have joined, when their deadline passes, or when no rank comes for an hour. If
    /// `NCCL_COMM_ID` is set no root is started: the id follows from that address and
    /// `MAYPOLE_SECRET_FILE`, and rank 0 starts the root when it joins.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if the process has no descriptor or thread left;
    /// [`BootstrapError::Setting`] if a setting cannot be used.
    pub fn create() -> Result<Self, BootstrapError> {
        Self::create_with(&Options::default())
    }

    /// As [`create`](Self::create), with the time after which missing ranks are named.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with(options: &Options) -> Result<Self, BootstrapError> {
        let config = Config::get();
        if let Some(place) = &config.comm_id {
            return fixed(place, config);
        }
        let secret = Key::random().map_err(|error| BootstrapError::system("getrandom", &error))?;
        let (listeners, root) = listener_address::listen()?;
        root::start(secret.clone(), listeners, options, None, Vec::new())?;
        Ok(Self::of_running_root(&secret, &root))
    }

    /// Starts the bootstrap root of a child communicator that has this secret. Returns the address
    /// of the root, for [`of_child`](Self::of_child) on the ranks of the child. The address is no
    /// secret.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if the process has no descriptor or thread left.
    pub fn start_child_root(secret: &Key, options: &Options) -> Result<Vec<u8>, BootstrapError> {
        let (listeners, root) = listener_address::listen()?;
        root::start(secret.clone(), listeners, options, None, Vec::new())?;
        let mut address = Vec::new();
        root.encode(&mut address, MOST_ADDRESS_BYTES);
        Ok(address)
    }

    /// The id of the child communicator with this secret whose root is at `address`. None if the
    /// bytes are not an address.
    pub fn of_child(address: &[u8], secret: &Key) -> Option<Self> {
        let root = ListenerAddresses::decode(&mut ByteReader::new(address))?;
        (!root.addresses.is_empty()).then(|| Self::of_running_root(secret, &root))
    }
}

/// The id that follows from `NCCL_COMM_ID` and `MAYPOLE_SECRET_FILE`.
fn fixed(place: &HostPort, config: &Config) -> Result<UniqueId, BootstrapError> {
    let secret = match &config.secret_file {
        Some(file) => secret_file::read(file)
            .map_err(|why| BootstrapError::Setting { variable: "MAYPOLE_SECRET_FILE", why })?,
        None if config.trust_network => secret_file::public_key(),
        None => {
            return Err(BootstrapError::Setting {
                variable: "NCCL_COMM_ID",
                why: String::from(
                    "with an address alone anyone could join; set MAYPOLE_SECRET_FILE to a file \
                     of 32 secret bytes, the same on all ranks, or MAYPOLE_TRUST_NETWORK=1 if \
                     everyone on the network may join",
                ),
            });
        }
    };
    let secret = secret.derive("comm id", &[]);
    let addresses = (place.host.as_str(), place.port).to_socket_addrs().map_err(|error| {
        BootstrapError::Setting {
            variable: "NCCL_COMM_ID",
            why: format!("{}: {error}", place.host),
        }
    })?;
    let addresses: Vec<SocketAddr> = addresses.take(MOST_ADDRESSES).collect();
    let is_named_loopback = place.host == "localhost" || place.host.parse::<IpAddr>().is_ok();
    if !is_named_loopback && addresses.iter().all(|address| address.ip().is_loopback()) {
        log::info!(
            "NCCL_COMM_ID names {}, which is {} here, a loopback address: ranks of other hosts \
             cannot use it; see /etc/hosts",
            place.host,
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(UniqueId::at_fixed_address(&secret, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_alone_is_refused() {
        let place = HostPort { host: "127.0.0.1".into(), port: 9 };
        let error = fixed(&place, &Config::default()).unwrap_err().to_string();
        assert!(error.contains("MAYPOLE_SECRET_FILE"), "{error}");
        assert!(error.contains("MAYPOLE_TRUST_NETWORK=1"), "{error}");
        let trusting = Config { trust_network: true, ..Config::default() };
        assert_eq!(fixed(&place, &trusting).unwrap(), fixed(&place, &trusting).unwrap());
    }

    #[test]
    fn ids_of_one_address_and_file_are_equal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = HostPort { host: "127.0.0.1".into(), port: 9 };
        let config = Config { secret_file: Some(file.path().to_owned()), ..Config::default() };
        assert!(fixed(&place, &config).unwrap_err().to_string().contains("at least 16"));
        std::fs::write(file.path(), [7; 32]).unwrap();
        let ids = [(); 2].map(|()| fixed(&place, &config).unwrap());
        assert_eq!(ids[0], ids[1]);
    }
}
