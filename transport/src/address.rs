//! The address of an endpoint: where its peers find it, and by which kinds of link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::LinkError;
use crate::host::HostId;

/// A value that ranks in threads of one process have in common.
pub(crate) type ProcessToken = [u8; 20];

/// The first byte of an address: its format.
const VERSION: u8 = 4;
/// Maximum number of bytes of an address.
const MAX_BYTES: usize = 128;

/// The kind of link between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// Both are threads of one process.
    Local,
    /// Both are processes of one host that share memory.
    Shm,
    /// Both have RDMA devices of one kind.
    Verbs,
    /// All others.
    Tcp,
}

/// The kind of RDMA network of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RdmaNetwork {
    InfiniBand,
    Ethernet,
}

const NETWORKS: [Option<RdmaNetwork>; 3] =
    [None, Some(RdmaNetwork::InfiniBand), Some(RdmaNetwork::Ethernet)];

/// A decoded address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointAddress {
    pub(crate) token: ProcessToken,
    pub(crate) host: HostId,
    /// The name of the UNIX socket, by which ranks prove that they share a host, and connect if
    /// they share memory; empty if there is none.
    pub(crate) socket: Vec<u8>,
    /// Whether it shares memory.
    pub(crate) shm: bool,
    /// The network of its RDMA device, if it has one.
    pub(crate) rdma: Option<RdmaNetwork>,
    /// Number of TCP streams that it wants per peer.
    pub(crate) streams: u8,
    /// The addresses at which it listens; empty without TCP.
    pub(crate) tcp: Vec<SocketAddr>,
}

impl EndpointAddress {
    /// Encodes the address in at most [`MAX_BYTES`] bytes. TCP addresses for which there is no room
    /// are left out.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.token);
        out.extend(self.host.bytes());
        out.push(self.socket.len() as u8);
        out.extend(&self.socket);
        let rdma = NETWORKS.iter().position(|network| *network == self.rdma);
        out.push(u8::from(self.shm) | (rdma.unwrap_or(0) as u8) << 1);
        out.push(self.streams);
        for address in &self.tcp {
            let ip: &[u8] = match &address.ip() {
                IpAddr::V4(ip) => &ip.octets(),
                IpAddr::V6(ip) => &ip.octets(),
            };
            if out.len() + ip.len() + 3 <= MAX_BYTES {
                out.push(ip.len() as u8);
                out.extend(ip);
                out.extend(address.port().to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LinkError> {
        Self::parse(bytes)
            .ok_or(LinkError::Misuse { what: "these bytes are not an address of an endpoint" })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (token, rest) = rest.split_first_chunk()?;
        let (host, rest) = rest.split_first_chunk()?;
        let (&len, rest) = rest.split_first()?;
        let (socket, rest) = rest.split_at_checked(len.into())?;
        let (&kinds, rest) = rest.split_first()?;
        let rdma = *NETWORKS.get(usize::from(kinds >> 1))?;
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
        let whole = version == VERSION && bytes.len() <= MAX_BYTES;
        let host = HostId::from_bytes(*host);
        let (token, socket, shm) = (*token, socket.to_vec(), kinds & 1 == 1);
        whole.then_some(Self { token, host, socket, shm, rdma, streams, tcp })
    }

    /// The kind of link between the ranks at these two addresses, the same from both ends. `None`
    /// if they cannot reach each other.
    pub(crate) fn link_kind(&self, other: &Self) -> Option<LinkKind> {
        if self.token == other.token {
            Some(LinkKind::Local)
        } else if self.host == other.host && self.shm && other.shm {
            Some(LinkKind::Shm)
        } else if !self.tcp.is_empty() && !other.tcp.is_empty() {
            let same_network = self.rdma.is_some() && self.rdma == other.rdma;
            Some(if same_network { LinkKind::Verbs } else { LinkKind::Tcp })
        } else {
            None
        }
    }

    /// The TCP addresses to dial from the rank at `dialer`, in order. Loopback addresses come first
    /// on the same host; for another host they are only used if there are no others.
    pub(crate) fn tcp_addresses_from(&self, dialer: &Self) -> Vec<SocketAddr> {
        let (loopback, mut others): (Vec<SocketAddr>, Vec<SocketAddr>) =
            self.tcp.iter().partition(|address| address.ip().is_loopback());
        if self.host == dialer.host || others.is_empty() {
            others.splice(0..0, loopback);
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(token: u8, host: u8, shm: bool, tcp: &[&str]) -> EndpointAddress {
        EndpointAddress {
            token: [token; 20],
            host: HostId::from_bytes([host; 16]),
            socket: vec![b'x'; 40],
            shm,
            rdma: None,
            streams: 4,
            tcp: tcp.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    const TCP_ADDRESSES: [&str; 4] = ["10.0.0.1:1", "10.0.0.2:2", "127.0.0.1:3", "[fd00::1]:4"];

    #[test]
    fn an_address_decodes_to_itself_and_a_damaged_one_is_refused() {
        let whole = address(1, 2, true, &TCP_ADDRESSES);
        let bytes = whole.encode();
        assert!(bytes.len() <= MAX_BYTES);
        assert_eq!(EndpointAddress::decode(&bytes).unwrap(), whole);
        assert!(EndpointAddress::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(EndpointAddress::decode(b"").is_err());
        let too_many = address(1, 2, true, &["[fd00::1]:4"; 5]);
        assert_eq!(EndpointAddress::decode(&too_many.encode()).unwrap().tcp.len(), 2);
    }

    #[test]
    fn both_ends_choose_the_same_kind_of_link() {
        let one = address(1, 1, true, &TCP_ADDRESSES);
        for (other, kind) in [
            (address(1, 1, true, &TCP_ADDRESSES), Some(LinkKind::Local)),
            (address(2, 1, true, &TCP_ADDRESSES), Some(LinkKind::Shm)),
            (address(2, 1, false, &TCP_ADDRESSES), Some(LinkKind::Tcp)),
            (address(2, 2, true, &TCP_ADDRESSES), Some(LinkKind::Tcp)),
            (address(2, 2, true, &[]), None),
        ] {
            assert_eq!((one.link_kind(&other), other.link_kind(&one)), (kind, kind));
        }
        let rdma = |rdma| EndpointAddress { rdma, ..address(2, 2, true, &TCP_ADDRESSES) };
        let (ib, ethernet) = (Some(RdmaNetwork::InfiniBand), Some(RdmaNetwork::Ethernet));
        let kind = |a, b| rdma(a).link_kind(&EndpointAddress { token: [9; 20], ..rdma(b) });
        assert_eq!(kind(ib, ib), Some(LinkKind::Shm));
        let far = EndpointAddress { host: HostId::from_bytes([7; 16]), ..rdma(ib) };
        assert_eq!(far.link_kind(&address(2, 2, true, &TCP_ADDRESSES)), Some(LinkKind::Local));
        let far = |rdma| EndpointAddress { token: [7; 20], rdma, ..far.clone() };
        for (a, b, expected) in [
            (ib, ib, LinkKind::Verbs),
            (ethernet, ethernet, LinkKind::Verbs),
            (ib, ethernet, LinkKind::Tcp),
            (None, ib, LinkKind::Tcp),
        ] {
            assert_eq!(rdma(a).link_kind(&far(b)), Some(expected));
            let bytes = far(b).encode();
            assert_eq!(EndpointAddress::decode(&bytes).unwrap(), far(b));
        }
        assert_eq!(one.tcp_addresses_from(&one)[0].port(), 3);
        let ports = |to: &EndpointAddress| to.tcp_addresses_from(&address(2, 2, true, &[])).len();
        assert_eq!((ports(&one), ports(&address(1, 1, true, &TCP_ADDRESSES[2..3]))), (3, 1));
    }
}
