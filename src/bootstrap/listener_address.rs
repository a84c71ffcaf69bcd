//! Opens listeners, and says whether a listener is on this host.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use maypole_control::listener_addresses::ListenerAddresses;
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
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    let mut refused = None;
    for &address in wanted {
        let bound = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(|listener| lengthen_queue(&listener).map(|()| listener))
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        match bound {
            Ok((listener, address)) => {
                listeners.push(listener);
                addresses.push(address);
            }
            Err(error) => {
                log::info!("cannot listen at {address}: {error}");
                refused = Some(error);
            }
        }
    }
    match refused {
        Some(error) if listeners.is_empty() => Err(BootstrapError::system("bind", &error)),
        _ => Ok((listeners, ListenerAddresses { host_tag: host_tag(), addresses })),
    }
}

/// Lengthens the queue of connections from the 128 of the standard library: hundreds of ranks
/// connect at once, and one that finds the queue full loses a second. The kernel applies its own
/// limit.
fn lengthen_queue(listener: &TcpListener) -> std::io::Result<()> {
    // SAFETY: listen takes numbers only; on a listening socket it changes the length of the queue.
    if unsafe { libc::listen(listener.as_raw_fd(), 4096) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
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
