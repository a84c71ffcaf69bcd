//! Where a listener can be reached: interfaces, addresses, and whether a peer is on this host.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use super::error::BootstrapError;
use super::wire::Take;
use crate::config::{AddressFamily, Config};

/// Most addresses of one listener.
pub(super) const MOST_ADDRESSES: usize = 5;

/// Where one listener can be reached, in the order of preference, and the tag of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Equal tags: the loopback addresses below are ours too.
    pub(super) host_tag: u64,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Reach {
    /// The addresses to try from here: loopback first on the same host, not at all on another.
    pub(super) fn reachable_here(&self) -> Vec<SocketAddr> {
        let (near, mut far): (Vec<SocketAddr>, Vec<SocketAddr>) =
            self.addresses.iter().partition(|address| address.ip().is_loopback());
        if self.host_tag == host_tag() || far.is_empty() {
            far.splice(0..0, near);
        }
        far
    }

    /// Appends tag, count and addresses, leaving out those for which `room` bytes are too few.
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

    pub(super) fn decode(take: &mut Take<'_>) -> Option<Self> {
        let host_tag = take.u64()?;
        let count = take.u8()?;
        if usize::from(count) > MOST_ADDRESSES {
            return None;
        }
        let mut addresses = Vec::new();
        for _ in 0..count {
            let ip = match take.u8()? {
                4 => IpAddr::V4(Ipv4Addr::from(take.array::<4>()?)),
                6 => IpAddr::V6(Ipv6Addr::from(take.array::<16>()?)),
                _ => return None,
            };
            addresses.push(SocketAddr::new(ip, take.u16()?));
        }
        Some(Self { host_tag, addresses })
    }
}

/// This host's addresses at which to be reached: those that the configuration admits, and loopback.
///
/// # Errors
/// No interface is what `NCCL_SOCKET_IFNAME` names, or the kernel does not tell.
pub fn addresses(config: &Config) -> Result<Vec<IpAddr>, BootstrapError> {
    let mut ips = chosen(&interfaces()?, config)?;
    let loopback = match config.socket_family {
        Some(AddressFamily::V6) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    if !ips.contains(&loopback) {
        ips.push(loopback);
    }
    Ok(ips)
}

/// Listens at them, at a port of the kernel's choice each.
pub(super) fn listen() -> Result<(Vec<TcpListener>, Reach), BootstrapError> {
    let ips = addresses(Config::get())?;
    let wanted: Vec<_> = ips.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect();
    listen_at(&wanted)
}

/// Listens at those of the addresses that are this host's; at least one must be.
pub(super) fn listen_at(
    wanted: &[SocketAddr],
) -> Result<(Vec<TcpListener>, Reach), BootstrapError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    let mut refused = None;
    for &address in wanted {
        let bound = TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .and_then(|listener| lengthen(&listener).map(|()| listener))
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
        _ => Ok((listeners, Reach { host_tag: host_tag(), addresses })),
    }
}

/// The standard library asks for a queue of 128; hundreds of ranks come at once, and who finds the queue full is slowed
/// down by a second. The kernel cuts it to its own limit.
fn lengthen(listener: &TcpListener) -> std::io::Result<()> {
    // SAFETY: listen has no preconditions; on a listening socket it changes the length of the queue.
    if unsafe { libc::listen(listener.as_raw_fd(), 4096) } == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Tells network namespaces of running kernels apart: in an equal one 127.0.0.1 is the same place.
pub(super) fn host_tag() -> u64 {
    let mut hasher = Sha256::new();
    if let Ok(boot) = std::fs::read("/proc/sys/kernel/random/boot_id") {
        hasher.update(&boot);
    }
    match std::fs::metadata("/proc/self/ns/net") {
        Ok(namespace) => {
            hasher.update(namespace.dev().to_le_bytes());
            hasher.update(namespace.ino().to_le_bytes());
        }
        Err(_) => hasher.update(crate::logger::host_name()),
    }
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

/// The addresses to listen at, by NCCL's preference: InfiniBand, then any other, then bridges of containers, then
/// loopback, each only if there is none of the kind before. At most three IPv4 and one IPv6 address.
fn chosen(found: &[(String, IpAddr)], config: &Config) -> Result<Vec<IpAddr>, BootstrapError> {
    let candidates: Vec<&(String, IpAddr)> = found
        .iter()
        .filter(|(name, ip)| {
            config.socket_interfaces.as_ref().is_none_or(|wanted| wanted.admits(name))
                && match config.socket_family {
                    Some(AddressFamily::V4) => ip.is_ipv4(),
                    Some(AddressFamily::V6) => ip.is_ipv6(),
                    None => true,
                }
        })
        .collect();
    if candidates.is_empty() && config.socket_interfaces.is_some() {
        let names: BTreeSet<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(BootstrapError::Setting {
            variable: "NCCL_SOCKET_IFNAME",
            why: format!("no interface that is up matches; there are: {}", names.join(", ")),
        });
    }
    let kind = |name: &str, ip: &IpAddr| match name {
        _ if ip.is_loopback() => 3,
        _ if name.starts_with("ib") => 0,
        _ if ["docker", "br-", "veth", "virbr"].iter().any(|bridge| name.starts_with(bridge)) => 2,
        _ => 1,
    };
    // What the user names is taken as it is.
    let explicit = config.socket_interfaces.is_some();
    let best = candidates.iter().map(|(name, ip)| kind(name, ip)).min();
    let of_best = |name: &str, ip: &IpAddr| explicit || Some(kind(name, ip)) == best;
    let taken: Vec<IpAddr> =
        candidates.iter().filter(|(name, ip)| of_best(name, ip)).map(|(_, ip)| *ip).collect();
    let v4 = taken.iter().filter(|ip| ip.is_ipv4()).take(3);
    let v6 = taken.iter().filter(|ip| ip.is_ipv6()).take(1);
    Ok(v4.chain(v6).copied().collect())
}

/// Names and addresses of the interfaces that are up. Link-local IPv6 addresses are left out: they mean
/// something else on each host.
fn interfaces() -> Result<Vec<(String, IpAddr)>, BootstrapError> {
    let mut head = std::ptr::null_mut();
    // SAFETY: getifaddrs writes the head of a list to the pointer given, or fails.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(BootstrapError::system("getifaddrs", &std::io::Error::last_os_error()));
    }
    let mut found = Vec::new();
    let mut next = head;
    while !next.is_null() {
        // SAFETY: a non-null entry of the list is valid until freeifaddrs.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_flags & libc::IFF_UP as u32 == 0 || entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: ifa_name is a C string that lives as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        // SAFETY: ifa_addr is not null; every socket address begins with its family.
        let ip = match i32::from(unsafe { (*entry.ifa_addr).sa_family }) {
            libc::AF_INET => {
                // SAFETY: an address of family AF_INET is a sockaddr_in; it need not be aligned.
                let address =
                    unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
                IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)))
            }
            libc::AF_INET6 => {
                // SAFETY: an address of family AF_INET6 is a sockaddr_in6; it need not be aligned.
                let address =
                    unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                if ip.is_unicast_link_local() {
                    continue;
                }
                IpAddr::V6(ip)
            }
            _ => continue,
        };
        found.push((name, ip));
    }
    // SAFETY: `head` came from getifaddrs and nothing borrowed from the list is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<(String, IpAddr)> {
        [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "10.0.0.1"),
            ("eth0", "fd00::1"),
            ("eth1", "10.0.1.1"),
        ]
        .iter()
        .map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap()))
        .collect()
    }

    fn choose(name: &'static str, value: &'static str) -> String {
        let config = Config::read(|asked| (asked == name).then(|| value.to_owned())).0;
        match chosen(&found(), &config) {
            Ok(ips) => ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn interfaces_are_chosen_as_nccl_does() {
        assert_eq!(choose("", ""), "10.0.0.1 10.0.1.1 fd00::1");
        assert_eq!(choose("NCCL_SOCKET_FAMILY", "AF_INET6"), "fd00::1");
        assert_eq!(choose("NCCL_SOCKET_IFNAME", "=eth1"), "10.0.1.1");
        assert_eq!(choose("NCCL_SOCKET_IFNAME", "docker"), "172.17.0.1");
        assert_eq!(choose("NCCL_SOCKET_IFNAME", "lo"), "127.0.0.1 ::1");
        assert!(choose("NCCL_SOCKET_IFNAME", "ib").contains("there are: docker0, eth0, eth1, lo"));
        let bridges: Vec<_> = found().into_iter().take(3).collect();
        assert_eq!(chosen(&bridges, &Config::default()).unwrap().len(), 1);
    }

    #[test]
    fn reach_survives_the_wire_and_prefers_loopback_at_home() {
        let near: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let far: SocketAddr = "[fd00::1]:2".parse().unwrap();
        let reach = Reach { host_tag: host_tag(), addresses: vec![far, near] };
        let mut bytes = Vec::new();
        reach.encode(&mut bytes, 100);
        assert_eq!(Reach::decode(&mut Take::new(&bytes)), Some(reach.clone()));
        assert_eq!(reach.reachable_here(), [near, far]);
        let foreign = Reach { host_tag: reach.host_tag ^ 1, ..reach.clone() };
        assert_eq!(foreign.reachable_here(), [far]);
        let mut short = Vec::new();
        reach.encode(&mut short, 20);
        assert_eq!(Reach::decode(&mut Take::new(&short)).unwrap().addresses, [near]);
    }

    #[test]
    fn this_host_has_an_interface() {
        let (listeners, reach) = listen().unwrap();
        assert_eq!(listeners.len(), reach.addresses.len());
        assert!(reach.addresses.iter().all(|address| address.port() != 0));
    }
}
