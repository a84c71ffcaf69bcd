//! The network addresses of this host that a listener should use.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use maypole_transport::sync::{AtomicBool, Ordering};

use super::error::BootstrapError;
use crate::config::{AddressFamily, Config};

/// Most addresses of each family that are offered besides loopback: as many as a unique id has room
/// for.
const MOST_V4: usize = 6;
const MOST_V6: usize = 1;

/// An address of this host and its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InterfaceAddress {
    name: String,
    ip: IpAddr,
    /// The interface is a bridge, such as containers and virtual machines use.
    is_bridge: bool,
    /// Packets to unknown hosts leave by this interface.
    has_default_route: bool,
}

/// The addresses at which other ranks can reach this host: those that the configuration admits, and
/// loopback.
///
/// # Errors
/// [`BootstrapError::Setting`] if no interface matches `NCCL_SOCKET_IFNAME`;
/// [`BootstrapError::System`] if the kernel does not list them.
pub fn addresses(config: &Config) -> Result<Vec<IpAddr>, BootstrapError> {
    let chosen = chosen(&interfaces()?, config)?;
    log_once(&chosen);
    let mut ips: Vec<IpAddr> = chosen.iter().map(|address| address.ip).collect();
    let loopback = match config.socket_family {
        Some(AddressFamily::V6) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    if !ips.contains(&loopback) {
        ips.push(loopback);
    }
    Ok(ips)
}

/// Logs the interface that is tried first, in the words of NCCL, for which people search logs.
fn log_once(chosen: &[InterfaceAddress]) {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if let Some(InterfaceAddress { name, ip, .. }) = chosen.first()
        && !LOGGED.swap(true, Ordering::Relaxed)
    {
        log::info!("Bootstrap : Using {name}:{ip}<0>");
    }
}

/// The addresses to listen at, in the order of preference. The kinds of interfaces are those of
/// NCCL: InfiniBand, then other interfaces, then bridges of containers, then loopback, each kind
/// only if there is none of the kind before. Within a kind, the interface of the default route
/// comes first, and bridges come last, so that they do not push out the address that others can
/// reach.
fn chosen(
    found: &[InterfaceAddress],
    config: &Config,
) -> Result<Vec<InterfaceAddress>, BootstrapError> {
    let candidates: Vec<&InterfaceAddress> = found
        .iter()
        .filter(|InterfaceAddress { name, ip, .. }| {
            config.socket_interfaces.as_ref().is_none_or(|wanted| wanted.admits(name))
                && match config.socket_family {
                    Some(AddressFamily::V4) => ip.is_ipv4(),
                    Some(AddressFamily::V6) => ip.is_ipv6(),
                    None => true,
                }
        })
        .collect();
    if candidates.is_empty() && config.socket_interfaces.is_some() {
        let names: BTreeSet<&str> = found.iter().map(|address| address.name.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(BootstrapError::Setting {
            variable: "NCCL_SOCKET_IFNAME",
            why: format!("no interface that is up matches; there are: {}", names.join(", ")),
        });
    }
    let kind = |address: &InterfaceAddress| match address.name.as_str() {
        _ if address.ip.is_loopback() => 3,
        name if name.starts_with("ib") => 0,
        name if ["docker", "br-", "veth", "virbr"].iter().any(|it| name.starts_with(it)) => 2,
        _ => 1,
    };
    // Interfaces that the user names are taken whatever their kind.
    let explicit = config.socket_interfaces.is_some();
    let best = candidates.iter().map(|address| kind(address)).min();
    let mut taken: Vec<&InterfaceAddress> =
        candidates.into_iter().filter(|it| explicit || Some(kind(it)) == best).collect();
    // The sort keeps the order of the kernel among equals.
    taken.sort_by_key(|it| (!it.has_default_route, it.is_bridge, it.ip.is_loopback()));
    let v4 = taken.iter().filter(|it| it.ip.is_ipv4()).take(MOST_V4);
    let v6 = taken.iter().filter(|it| it.ip.is_ipv6()).take(MOST_V6);
    Ok(v4.chain(v6).map(|&address| address.clone()).collect())
}

/// The names of the interfaces by which packets to unknown hosts leave.
fn default_routes() -> BTreeSet<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    default_routes_in(&read("/proc/net/route"), &read("/proc/net/ipv6_route"))
}

/// The same, of the tables of the kernel for IPv4 and IPv6.
fn default_routes_in(v4: &str, v6: &str) -> BTreeSet<String> {
    let of_v4 = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_default = words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000");
        is_default.then(|| words[0].to_owned())
    };
    let of_v6 = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let destination = words.first()?.bytes().all(|digit| digit == b'0');
        let name = words.get(9).filter(|name| **name != "lo")?;
        (destination && words.get(1) == Some(&"00")).then(|| (*name).to_owned())
    };
    v4.lines().filter_map(of_v4).chain(v6.lines().filter_map(of_v6)).collect()
}

/// Names and addresses of the interfaces that are up. Link-local IPv6 addresses are left out,
/// because they have another meaning on each host.
fn interfaces() -> Result<Vec<InterfaceAddress>, BootstrapError> {
    let default_routes = default_routes();
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
        let is_bridge = Path::new("/sys/class/net").join(&name).join("bridge").exists();
        let has_default_route = default_routes.contains(&name);
        found.push(InterfaceAddress { name, ip, is_bridge, has_default_route });
    }
    // SAFETY: `head` came from getifaddrs and nothing borrowed from the list is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<InterfaceAddress> {
        let addresses = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "10.0.0.1"),
            ("eth0", "fd00::1"),
            ("eth1", "10.0.1.1"),
        ];
        addresses.iter().map(|(name, ip)| address(name, ip)).collect()
    }

    fn address(name: &str, ip: &str) -> InterfaceAddress {
        InterfaceAddress {
            name: name.to_owned(),
            ip: ip.parse().unwrap(),
            is_bridge: name.starts_with("br"),
            has_default_route: false,
        }
    }

    fn texts(chosen: &[InterfaceAddress]) -> String {
        chosen.iter().map(|address| address.ip.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn choose(name: &'static str, value: &'static str) -> String {
        let config = Config::read(|asked| (asked == name).then(|| value.to_owned())).0;
        match chosen(&found(), &config) {
            Ok(chosen) => texts(&chosen),
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
    fn bridges_do_not_push_out_the_address_that_others_can_reach() {
        let mut found: Vec<_> =
            (1..9).map(|n| address(&format!("br{n}"), &format!("10.1.{n}.1"))).collect();
        found.push(address("eth1", "10.0.1.1"));
        found.push(InterfaceAddress { has_default_route: true, ..address("eth0", "10.0.0.1") });
        let chosen = chosen(&found, &Config::default()).unwrap();
        assert_eq!(texts(&chosen), "10.0.0.1 10.0.1.1 10.1.1.1 10.1.2.1 10.1.3.1 10.1.4.1");
    }

    #[test]
    fn default_routes_are_read_from_the_tables_of_the_kernel() {
        let v4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n\
                  eth1 0001000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             {zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 00000003 eth2\n\
             {zero} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth3\n"
        );
        let names: Vec<String> = default_routes_in(v4, &v6).into_iter().collect();
        assert_eq!(names, ["eth0", "eth2"]);
        assert!(default_routes_in("", "").is_empty());
    }
}
