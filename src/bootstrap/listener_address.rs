//! Where a listener can be reached: its addresses, and whether it is on this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use maypole_transport::noise::sha256;

use super::codec::ByteReader;
use super::error::BootstrapError;
use super::interfaces;
use crate::config::Config;

/// Most addresses of one listener.
pub(super) const MOST_ADDRESSES: usize = 5;
/// Most bytes of encoded addresses that a unique id must hold.
pub(super) const MOST_ADDRESS_BYTES: usize = 79;

/// The addresses of one listener, in the order of preference, and the tag of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListenerAddresses {
    /// Equal to [`host_tag`] if the loopback addresses in the list are addresses of this host.
    pub(super) host_tag: u64,
    pub(super) addresses: Vec<SocketAddr>,
}

impl ListenerAddresses {
    /// The addresses to try from this host: loopback addresses first if the listener is on this
    /// host, and not at all if it is on another.
    pub(super) fn reachable_here(&self) -> Vec<SocketAddr> {
        let (loopback, mut others): (Vec<SocketAddr>, Vec<SocketAddr>) =
            self.addresses.iter().partition(|address| address.ip().is_loopback());
        if self.host_tag == host_tag() || others.is_empty() {
            others.splice(0..0, loopback);
        }
        others
    }

    /// Appends tag, count and addresses, without those that do not fit in `room` bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>, room: usize) {
        let start = out.len();
        out.extend(self.host_tag.to_le_bytes());
        let count_at = out.len();
        out.push(0);
        for address in self.addresses.iter().take(MOST_ADDRESSES) {
            let before = out.len();
            match address.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend(ip.octets());
                }
            }
            out.extend(address.port().to_le_bytes());
            if out.len() - start > room {
                out.truncate(before);
                continue;
            }
            out[count_at] += 1;
        }
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(super) fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
        let host_tag = reader.u64()?;
        let count = reader.u8()?;
        if usize::from(count) > MOST_ADDRESSES {
            return None;
        }
        let mut addresses = Vec::new();
        for _ in 0..count {
            let ip = match reader.u8()? {
                4 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
                6 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)),
                _ => return None,
            };
            addresses.push(SocketAddr::new(ip, reader.u16()?));
        }
        Some(Self { host_tag, addresses })
    }
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
    fn addresses_round_trip_and_loopback_comes_first_on_this_host() {
        let loopback: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let other: SocketAddr = "[fd00::1]:2".parse().unwrap();
        let addresses =
            ListenerAddresses { host_tag: host_tag(), addresses: vec![other, loopback] };
        let mut bytes = Vec::new();
        addresses.encode(&mut bytes, 100);
        assert_eq!(
            ListenerAddresses::decode(&mut ByteReader::new(&bytes)),
            Some(addresses.clone())
        );
        assert_eq!(addresses.reachable_here(), [loopback, other]);
        let foreign = ListenerAddresses { host_tag: addresses.host_tag ^ 1, ..addresses.clone() };
        assert_eq!(foreign.reachable_here(), [other]);
        let mut short = Vec::new();
        addresses.encode(&mut short, 20);
        assert_eq!(
            ListenerAddresses::decode(&mut ByteReader::new(&short)).unwrap().addresses,
            [loopback]
        );
    }

    #[test]
    fn this_host_has_an_interface() {
        let (listeners, addresses) = listen().unwrap();
        assert_eq!(listeners.len(), addresses.addresses.len());
        assert!(addresses.addresses.iter().all(|address| address.port() != 0));
    }
}
