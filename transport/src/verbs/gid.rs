//! Which GID of a port is used. It is chosen by what it is, and not by its index, which changes
//! when the kernel fills the table again: after a cable was pulled, or an address was added.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use maypole_verbs::{Gid, GidEntry, GidKind};

/// Which GIDs the user prefers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GidPreference {
    /// Exactly the one with this index.
    pub index: Option<u32>,
    /// RoCE v1 before RoCE v2.
    pub roce_v1: bool,
    /// IPv6 addresses before IPv4 addresses.
    pub ipv6: bool,
    /// Only addresses that begin with so many bits of this one.
    pub range: Option<(IpAddr, u8)>,
}

/// How far an address reaches. A later one is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum AddressReach {
    /// This link alone.
    Link,
    /// The networks of an organisation (unique local IPv6 addresses).
    Local,
    /// Everywhere. Private IPv4 addresses count as such, because fabrics use them.
    Global,
}

/// The best entry of a port's GID table. `None` if no entry is allowed. Of RoCE v2 and v1 the
/// former is preferred; then the address that reaches further; then the family of addresses; then
/// the lowest index.
pub fn choose_gid(table: &[GidEntry], preference: &GidPreference) -> Option<GidEntry> {
    if let Some(index) = preference.index {
        return table.iter().find(|entry| entry.index == index).copied();
    }
    let allowed = |entry: &&GidEntry| preference.range.is_none_or(|range| within(entry.gid, range));
    let quality = |entry: &&GidEntry| {
        let kind_fits = (entry.kind == GidKind::RoceV1) == preference.roce_v1;
        let family_fits = (address(entry.gid).is_ipv6()) == preference.ipv6;
        (kind_fits, reach(entry.gid), family_fits, std::cmp::Reverse(entry.index))
    };
    table.iter().filter(allowed).max_by_key(quality).copied()
}

/// The address that a GID stands for.
fn address(gid: Gid) -> IpAddr {
    Ipv6Addr::from(gid.0).to_canonical()
}

fn reach(gid: Gid) -> AddressReach {
    match address(gid) {
        IpAddr::V4(ip) if ip.is_link_local() => AddressReach::Link,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => AddressReach::Link,
        IpAddr::V6(ip) if ip.is_unique_local() => AddressReach::Local,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => AddressReach::Link,
        _ => AddressReach::Global,
    }
}

/// Whether the GID is in the range that `bits` bits of an address describe.
fn within(gid: Gid, (network, bits): (IpAddr, u8)) -> bool {
    let bits_of = |address: IpAddr| match address {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let ((own, own_width), (other, width)) = (bits_of(address(gid)), bits_of(network));
    let shift = 128 - u32::from(bits.min(width));
    own_width == width && own.checked_shr(shift) == other.checked_shr(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(GidKind, &str)]) -> Vec<GidEntry> {
        let entry = |(index, (kind, text)): (usize, &(GidKind, &str))| {
            let gid = match text.parse().unwrap() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            GidEntry { gid: Gid(gid.octets()), index: index as u32, kind: *kind, interface: 0 }
        };
        entries.iter().enumerate().map(entry).collect()
    }

    const V1: GidKind = GidKind::RoceV1;
    const V2: GidKind = GidKind::RoceV2;

    fn chosen(entries: &[(GidKind, &str)], preference: &GidPreference) -> Option<u32> {
        choose_gid(&table(entries), preference).map(|entry| entry.index)
    }

    #[test]
    fn the_best_address_is_chosen_by_content() {
        let usual = GidPreference::default();
        let full = [(V1, "fe80::1"), (V2, "fe80::1"), (V1, "10.0.0.1"), (V2, "10.0.0.1")];
        assert_eq!(chosen(&full, &usual), Some(3));
        // The same table, filled in another order.
        let again = [(V2, "10.0.0.1"), (V1, "10.0.0.1"), (V2, "fe80::1"), (V1, "fe80::1")];
        assert_eq!(chosen(&again, &usual), Some(0));
        // A fabric with IPv6 alone: not the first entry, which reaches this link alone.
        let ipv6 = [(V1, "fe80::1"), (V2, "fe80::1"), (V2, "fd00::7"), (V2, "2001:db8::7")];
        assert_eq!(chosen(&ipv6, &usual), Some(3));
        assert_eq!(chosen(&ipv6[..3], &usual), Some(2));
        assert_eq!(chosen(&ipv6[..2], &usual), Some(1));
        assert_eq!(chosen(&[], &usual), None);
        // Of equals the first.
        assert_eq!(chosen(&[(V2, "10.0.0.2"), (V2, "10.0.0.1")], &usual), Some(0));
        assert_eq!(chosen(&[(V2, "169.254.0.9"), (V2, "10.0.0.1")], &usual), Some(1));
    }

    #[test]
    fn preferences_change_the_choice() {
        let all = [(V1, "10.0.0.1"), (V2, "10.0.0.1"), (V2, "2001:db8::7"), (V2, "192.168.3.4")];
        let with = |change: fn(&mut GidPreference)| {
            let mut preference = GidPreference::default();
            change(&mut preference);
            chosen(&all, &preference)
        };
        assert_eq!(with(|p| p.roce_v1 = true), Some(0));
        assert_eq!(with(|p| p.ipv6 = true), Some(2));
        assert_eq!(with(|p| p.index = Some(3)), Some(3));
        assert_eq!(with(|p| p.index = Some(4)), None, "never another one silently");
        assert_eq!(with(|p| p.range = Some(("192.168.0.0".parse().unwrap(), 16))), Some(3));
        assert_eq!(with(|p| p.range = Some(("2001:db8::".parse().unwrap(), 32))), Some(2));
        assert_eq!(with(|p| p.range = Some(("172.16.0.0".parse().unwrap(), 12))), None);
        assert_eq!(with(|p| p.range = Some(("0.0.0.0".parse().unwrap(), 0))), Some(1));
    }
}
