//! The address of an endpoint: where its peers find it, and by which links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::LinkError;
use crate::host;

/// What ranks that are threads of one process have in common.
pub(crate) type Token = [u8; 20];

/// First byte of an address: its format.
const VERSION: u8 = 2;
/// Most bytes of an address.
const MOST: usize = 128;

/// How two ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Local,
    Shm,
    Tcp,
}

/// An address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) token: Token,
    pub(crate) host: host::HostId,
    /// Name of the UNIX socket; empty without shared memory.
    pub(crate) shm: Vec<u8>,
    /// TCP connections that it wants with a peer.
    pub(crate) streams: u8,
    /// Where it listens; empty without TCP.
    pub(crate) tcp: Vec<SocketAddr>,
}

impl Address {
    /// Bytes, at most [`MOST`]: TCP addresses for which there is no room are left out.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.token);
        out.extend(self.host);
        out.push(self.shm.len() as u8);
        out.extend(&self.shm);
        out.push(self.streams);
        for address in &self.tcp {
            let ip: &[u8] = match &address.ip() {
                IpAddr::V4(ip) => &ip.octets(),
                IpAddr::V6(ip) => &ip.octets(),
            };
            if out.len() + ip.len() + 3 <= MOST {
                out.push(ip.len() as u8);
                out.extend(ip);
                out.extend(address.port().to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LinkError> {
        Self::parse(bytes).ok_or(LinkError::Misuse { what: "this is no address of an endpoint" })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (token, rest) = rest.split_first_chunk()?;
        let (host, rest) = rest.split_first_chunk()?;
        let (&len, rest) = rest.split_first()?;
        let (shm, rest) = rest.split_at_checked(len.into())?;
        let (&streams, mut rest) = rest.split_first()?;
        let mut tcp = Vec::new();
        while let Some((&len, more)) = rest.split_first() {
            let (ip, more) = more.split_at_checked(len.into())?;
            let ip: IpAddr = match len {
                4 => Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?).into(),
                16 => Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into(),
                _ => return None,
            };
            let (port, more) = more.split_first_chunk()?;
            tcp.push(SocketAddr::new(ip, u16::from_le_bytes(*port)));
            rest = more;
        }
        let whole = version == VERSION && bytes.len() <= MOST;
        whole.then(|| Self { token: *token, host: *host, shm: shm.to_vec(), streams, tcp })
    }

    /// How the ranks at these addresses reach each other: the same from both ends. None if they do not.
    pub(crate) fn way(&self, other: &Self) -> Option<Way> {
        if self.token == other.token {
            Some(Way::Local)
        } else if self.host == other.host && !self.shm.is_empty() && !other.shm.is_empty() {
            Some(Way::Shm)
        } else if !self.tcp.is_empty() && !other.tcp.is_empty() {
            Some(Way::Tcp)
        } else {
            None
        }
    }

    /// Where to dial it from `here`: loopback first on the same host, and on another only if there is nothing else.
    pub(crate) fn reachable_from(&self, here: &Self) -> Vec<SocketAddr> {
        let (near, mut far): (Vec<SocketAddr>, Vec<SocketAddr>) =
            self.tcp.iter().partition(|address| address.ip().is_loopback());
        if self.host == here.host || far.is_empty() {
            far.splice(0..0, near);
        }
        far
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(token: u8, host: u8, shm: bool, tcp: &[&str]) -> Address {
        Address {
            token: [token; 20],
            host: [host; 16],
            shm: if shm { vec![b'x'; 40] } else { vec![] },
            streams: 4,
            tcp: tcp.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    const FOUR: [&str; 4] = ["10.0.0.1:1", "10.0.0.2:2", "127.0.0.1:3", "[fd00::1]:4"];

    #[test]
    fn an_address_survives_the_wire_and_a_damaged_one_is_refused() {
        let whole = address(1, 2, true, &FOUR);
        let bytes = whole.encode();
        assert!(bytes.len() <= MOST);
        assert_eq!(Address::decode(&bytes).unwrap(), whole);
        assert!(Address::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(Address::decode(b"").is_err());
        let many = address(1, 2, true, &["[fd00::1]:4"; 5]);
        assert_eq!(Address::decode(&many.encode()).unwrap().tcp.len(), 2);
    }

    #[test]
    fn both_ends_choose_the_same_way() {
        let one = address(1, 1, true, &FOUR);
        for (other, way) in [
            (address(1, 1, true, &FOUR), Some(Way::Local)),
            (address(2, 1, true, &FOUR), Some(Way::Shm)),
            (address(2, 1, false, &FOUR), Some(Way::Tcp)),
            (address(2, 2, true, &FOUR), Some(Way::Tcp)),
            (address(2, 2, true, &[]), None),
        ] {
            assert_eq!((one.way(&other), other.way(&one)), (way, way));
        }
        assert_eq!(one.reachable_from(&one)[0].port(), 3);
        let ports = |there: &Address| there.reachable_from(&address(2, 2, true, &[])).len();
        assert_eq!((ports(&one), ports(&address(1, 1, true, &FOUR[2..3]))), (3, 1));
    }
}
