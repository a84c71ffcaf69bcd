//! The types of the settings that are neither numbers nor texts.

use super::number::integer_in;

/// The value of `NCCL_DEBUG`. Each level prints what the lower levels print too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DebugLevel {
    /// Nothing.
    None,
    /// The version line.
    Version,
    /// Errors and warnings.
    Warn,
    /// Decisions, such as the choice of an algorithm.
    Info,
    /// Every step.
    Trace,
}

/// The value of `MAYPOLE_BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitsSetting {
    /// The library's choice.
    Default,
    /// Results depend on the ranks alone.
    Canonical,
    /// Results may depend on size, algorithm and transport.
    Fast,
}

/// The value of `MAYPOLE_DEVICE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A CUDA device if this process sees one, else the host.
    Auto,
    /// The host, even if there is a device.
    Host,
    /// A CUDA device.
    Cuda,
}

/// The value of `MAYPOLE_ISA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsaSetting {
    /// The widest instructions that the processor has.
    Auto,
    /// No vector instructions beyond the compiler's baseline.
    Scalar,
    /// AVX2.
    Avx2,
    /// AVX-512.
    Avx512,
}

/// The value of `MAYPOLE_PROTO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolSetting {
    /// By the size of the message.
    Auto,
    /// LL messages wherever they fit.
    Line,
    /// Slots for all messages.
    Slots,
}

/// The value of `NCCL_SOCKET_FAMILY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFamily {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

/// The value of `NCCL_DEBUG_SUBSYS`: a set of parts of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubsystemSet(u32);

const SUBSYSTEM_NAMES: [&str; 16] = [
    "INIT",
    "COLL",
    "P2P",
    "SHM",
    "NET",
    "GRAPH",
    "TUNING",
    "ENV",
    "ALLOC",
    "CALL",
    "PROXY",
    "NVLS",
    "BOOTSTRAP",
    "REG",
    "PROFILE",
    "RAS",
];

impl SubsystemSet {
    pub(super) const ALL: Self = Self((1 << SUBSYSTEM_NAMES.len()) - 1);
    /// INIT, ENV and BOOTSTRAP.
    pub(super) const DEFAULT: Self = Self(1 | 1 << 7 | 1 << 12);

    /// Whether the part of that name is in the set.
    pub fn contains(self, name: &str) -> bool {
        Self::one(name).is_some_and(|one| self.0 & one.0 != 0)
    }

    /// The set of one part, or of all parts.
    fn one(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("ALL") {
            return Some(Self::ALL);
        }
        let index = SUBSYSTEM_NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        Some(Self(1 << index))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negated, list) = match text.strip_prefix('^') {
            Some(list) => (true, list),
            None => (false, text),
        };
        let mut set = 0;
        for name in list.split(',') {
            set |= Self::one(name.trim())?.0;
        }
        Some(Self(if negated { Self::ALL.0 & !set } else { set }))
    }
}

/// The value of `NCCL_SOCKET_IFNAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFilter {
    names: Vec<String>,
    exact: bool,
    exclude: bool,
}

impl InterfaceFilter {
    /// Whether the interface of that name may be used.
    pub fn admits(&self, interface: &str) -> bool {
        let listed = self.names.iter().any(|name| {
            if self.exact { interface == name } else { interface.starts_with(name.as_str()) }
        });
        listed != self.exclude
    }

    /// `^` and `=` may precede the list, in this order, and apply to all of it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (exclude, text) = match text.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (exact, text) = match text.strip_prefix('=') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // NCCL skips empty entries too. An empty prefix would match every interface.
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names: Vec<String> = names.map(str::to_owned).collect();
        (!names.is_empty()).then_some(Self { names, exact, exclude })
    }
}

/// The value of `NCCL_COMM_ID`: a host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
}

impl HostPort {
    /// Parses `host:port` or `[v6 address]:port`.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inside = rest.strip_suffix(']')?;
                inside.parse::<std::net::Ipv6Addr>().ok()?;
                inside
            }
            // With more colons and no brackets, the beginning of the port is ambiguous.
            None if host.contains(':') => return None,
            None => host,
        };
        let port: u16 = port.parse().ok().filter(|&port| port != 0)?;
        (!host.is_empty()).then(|| Self { host: host.to_owned(), port })
    }
}

/// The value of `MAYPOLE_NODES`: the node of each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLabels {
    /// The label of each rank. Ranks with equal labels are on one node.
    pub labels: Vec<String>,
}

impl NodeLabels {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let labels: Vec<String> = if text.contains(',') {
            text.split(',').map(|label| label.trim().to_owned()).collect()
        } else {
            let mut labels = Vec::new();
            for (node, size) in text.split('+').enumerate() {
                let size = integer_in(size.trim(), 1, 1 << 20)?;
                labels.extend((0..size).map(|_| node.to_string()));
            }
            labels
        };
        (!labels.iter().any(String::is_empty)).then_some(Self { labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsystem_lists_are_parsed() {
        let parse = |text| SubsystemSet::parse(text);
        assert!(parse("COLL,net").is_some_and(|set| set.contains("NET") && !set.contains("INIT")));
        assert!(parse("^COLL").is_some_and(|set| set.contains("NET") && !set.contains("COLL")));
        assert_eq!(parse("ALL"), Some(SubsystemSet::ALL));
        assert_eq!(parse("COLLL"), None);
        assert_eq!(parse("INIT,ENV,BOOTSTRAP"), Some(SubsystemSet::DEFAULT));
    }

    #[test]
    fn interface_lists_are_parsed() {
        let admits = |list, name| InterfaceFilter::parse(list).unwrap().admits(name);
        assert!(admits("eth,ib", "eth0") && admits("eth,ib", "ib1") && !admits("eth,ib", "lo"));
        assert!(admits("=eth0", "eth0") && !admits("=eth0", "eth01"));
        assert!(!admits("^docker,lo", "docker0") && admits("^docker,lo", "eth0"));
        assert!(!admits("^=eth0", "eth0") && admits("^=eth0", "eth01"));
        for list in [",eth,ib", "eth,,ib", "eth, ,ib,"] {
            assert!(admits(list, "eth0") && admits(list, "ib1") && !admits(list, "lo"), "{list}");
        }
        assert_eq!(InterfaceFilter::parse(","), None);
    }

    #[test]
    fn node_labels_are_parsed() {
        let parse = |text| NodeLabels::parse(text).map(|nodes| nodes.labels.concat());
        assert_eq!(parse("2+1"), Some("001".into()));
        assert_eq!(parse("3"), Some("000".into()));
        assert_eq!(parse("a, b,a"), Some("aba".into()));
        for bad in ["a", "2+", "2+0", "a,,b", "2+-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn hosts_and_ports_are_parsed() {
        let parse = |text| HostPort::parse(text).map(|it| (it.host, it.port));
        assert_eq!(parse("10.0.0.1:80"), Some(("10.0.0.1".into(), 80)));
        assert_eq!(parse("[::1]:80"), Some(("::1".into(), 80)));
        assert_eq!(parse("node-1:65535"), Some(("node-1".into(), 65535)));
        for bad in ["node", "node:0", "node:65536", "::1:80", "[node]:80", ":80", "[::1]80"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
