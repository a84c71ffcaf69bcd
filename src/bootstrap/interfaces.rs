//! The network addresses of this host that a listener should use.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::BootstrapError;
use crate::config::{AddressFamily, Config};

/// The addresses at which other ranks can reach this host: those that the configuration admits, and
/// loopback.
///
/// # Errors
/// [`BootstrapError::Setting`] if no interface matches `NCCL_SOCKET_IFNAME`;
/// [`BootstrapError::System`] if the kernel does not list them.
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

/// The addresses to listen at, in the order of preference of NCCL: InfiniBand, then other
/// interfaces, then bridges of containers, then loopback, each kind only if there is none of the
/// kind before. At most three IPv4 addresses and one IPv6 address.
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
    // Interfaces that the user names are taken whatever their kind.
    let explicit = config.socket_interfaces.is_some();
    let best = candidates.iter().map(|(name, ip)| kind(name, ip)).min();
    let of_best = |name: &str, ip: &IpAddr| explicit || Some(kind(name, ip)) == best;
    let taken: Vec<IpAddr> =
        candidates.iter().filter(|(name, ip)| of_best(name, ip)).map(|(_, ip)| *ip).collect();
    let v4 = taken.iter().filter(|ip| ip.is_ipv4()).take(3);
    let v6 = taken.iter().filter(|ip| ip.is_ipv6()).take(1);
    Ok(v4.chain(v6).copied().collect())
}

/// Names and addresses of the interfaces that are up. Link-local IPv6 addresses are left out,
/// because they have another meaning on each host.
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
}
