//! Opens listeners, and says whether a listener is on this host.

use std::net::{SocketAddr, TcpListener};

use maypole_control::listener_addresses::ListenerAddresses;
use maypole_transport::host::HostId;
use maypole_transport::net;

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
    let bound = bound.map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
            let wanted: Vec<_> = wanted.iter().map(|address| address.ip().to_string()).collect();
            BootstrapError::NoAddress { addresses: wanted.join(", "), why: error.to_string() }
        }
        _ => BootstrapError::system("listen", &error),
    })?;
    let (listeners, addresses) = bound.into_iter().unzip();
    Ok((listeners, ListenerAddresses { host_tag: host_tag(), addresses }))
}

/// A number that is equal for processes of one host. It decides whether loopback addresses are
/// tried; what answers there proves itself as everywhere.
pub(super) fn host_tag() -> u64 {
    HostId::current().tag()
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
