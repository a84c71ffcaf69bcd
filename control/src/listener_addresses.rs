//! The addresses at which a listener can be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::codec::ByteReader;

/// Most addresses of one listener.
pub const MOST_ADDRESSES: usize = 8;

/// The addresses of one listener, in the order of preference, and the tag of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerAddresses {
    /// Two equal tags mean that the loopback addresses of both are of one host.
    pub host_tag: u64,
    /// Up to [`MOST_ADDRESSES`] addresses.
    pub addresses: Vec<SocketAddr>,
}

impl ListenerAddresses {
    /// The addresses to try from the host with this tag: loopback addresses first if the listener
    /// is on that host, and not at all if it is on another.
    pub fn reachable_from(&self, host_tag: u64) -> Vec<SocketAddr> {
        let (loopback, mut others): (Vec<SocketAddr>, Vec<SocketAddr>) =
            self.addresses.iter().partition(|address| address.ip().is_loopback());
        if self.host_tag == host_tag || others.is_empty() {
            others.splice(0..0, loopback);
        }
        others
    }

    /// Appends tag, count and addresses, without those that do not fit in `room` bytes.
    pub fn encode(&self, out: &mut Vec<u8>, room: usize) {
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
    pub fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_loopback_comes_first_on_the_same_host() {
        let loopback: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let other: SocketAddr = "[fd00::1]:2".parse().unwrap();
        let addresses = ListenerAddresses { host_tag: 7, addresses: vec![other, loopback] };
        let decode = |bytes: &[u8]| ListenerAddresses::decode(&mut ByteReader::new(bytes));
        let mut bytes = Vec::new();
        addresses.encode(&mut bytes, 100);
        assert_eq!(decode(&bytes), Some(addresses.clone()));
        assert_eq!(addresses.reachable_from(7), [loopback, other]);
        assert_eq!(addresses.reachable_from(8), [other]);
        let mut short = Vec::new();
        addresses.encode(&mut short, 20);
        assert_eq!(decode(&short).unwrap().addresses, [loopback]);
    }
}
