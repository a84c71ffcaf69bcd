//! Opens listeners, and says whether a listener is on this host.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;

use maypole_control::listener_addresses::ListenerAddresses;
use maypole_transport::net;
use maypole_transport::noise::sha256;

use super::error::BootstrapError;
use super::interfaces;
use crate::config::Config;

/// Most bytes of encoded addresses that a unique id must hold.
pub(super) const MOST_ADDRESS_BYTES: usize = 79;

/// The addresses of a listener to try from this host.
pub(super) fn reachable_here(listener: &ListenerAddresses) -> Vec<SocketAddr> {
    listener.reachable_from(host_tag())
}

/// Listens at the [addresses](interfaces::addresses) of this host, at ports that the kernel
/// chooses.
pub(super) fn listen() -> Result<(Vec<TcpListener>, ListenerAddresses), BootstrapError> {
    let ips = interfaces::addresses(Config::get())?;
    let wanted: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
    listen_at(&wanted)
}

/// Listens at those of the addresses that belong to this host; at least one must.
pub(super) fn listen_at(
    wanted: &[SocketAddr],
) -> Result<(Vec<TcpListener>, ListenerAddresses), BootstrapError> {
    let bound = net::listen_at_each(wanted.iter().copied());
    let bound = bound.map_err(|error| BootstrapError::system("listen", &error))?;
    let (listeners, addresses) = bound.into_iter().unzip();
    Ok((listeners, ListenerAddresses { host_tag: host_tag(), addresses }))
}

/// A number that identifies the running kernel and the network namespace. Where it is equal,
/// 127.0.0.1 is the same host.
pub(super) fn host_tag() -> u64 {
    let mut host = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match std::fs::metadata("/proc/self/ns/net") {
        Ok(namespace) => {
            host.extend(namespace.dev().to_le_bytes());
            host.extend(namespace.ino().to_le_bytes());
        }
        Err(_) => host.extend(crate::logger::host_name().as_bytes()),
    }
    let digest = sha256(&[&host]);
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_an_interface() {
        let (listeners, addresses) = listen().unwrap();
        assert_eq!(listeners.len(), addresses.addresses.len());
        assert!(addresses.addresses.iter().all(|address| address.port() != 0));
    }
}
