//! What the user can choose about RDMA.

use std::path::PathBuf;

use super::gid::GidPreference;

/// How a rank uses RDMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbsConfig {
    /// The library in place of libibverbs, for tests.
    pub library: Option<PathBuf>,
    /// The devices and ports that may be used.
    pub adapters: AdapterFilter,
    /// Which GID is used.
    pub gid: GidPreference,
    /// A packet is sent again after 4.096 us times two to the power of this.
    pub timeout: u8,
    /// How often a packet is sent again, at most 7.
    pub retries: u8,
    /// The service level.
    pub service_level: u8,
    /// The traffic class.
    pub traffic_class: u8,
    /// The index of the partition key.
    pub partition_index: u16,
    /// Queue pairs per peer. The links take them in turn.
    pub queue_pairs: u32,
    /// Whether the network may deliver packets of a write in any order. None: on InfiniBand.
    pub adaptive_routing: Option<bool>,
    /// The least length of messages for which that counts, in bytes.
    pub adaptive_from: usize,
    /// Writes of the adapter to memory may be reordered until their completion.
    pub relaxed_ordering: bool,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self {
            library: None,
            adapters: AdapterFilter::default(),
            gid: GidPreference::default(),
            timeout: 20,
            retries: 7,
            service_level: 0,
            traffic_class: 0,
            partition_index: 0,
            queue_pairs: 1,
            adaptive_routing: None,
            adaptive_from: 8192,
            relaxed_ordering: true,
        }
    }
}

/// Which devices and ports may be used, in the form of `NCCL_IB_HCA`: a comma list of prefixes of
/// names, each with `:port` behind it or not; `=` in front makes them whole names, `^` excludes
/// what is listed, and `^=` does both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterFilter {
    listed: Vec<(String, Option<u8>)>,
    whole: bool,
    excludes: bool,
}

impl AdapterFilter {
    /// Parses the form of `NCCL_IB_HCA`. `None` if it names no device, or a port is no number.
    pub fn parse(text: &str) -> Option<Self> {
        let (excludes, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let (whole, text) = text.strip_prefix('=').map_or((false, text), |rest| (true, rest));
        let mut listed = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, port) = match part.split_once(':') {
                Some((name, port)) => (name, Some(port.parse().ok()?)),
                None => (part, None),
            };
            if name.is_empty() {
                return None;
            }
            listed.push((name.to_owned(), port));
        }
        (!listed.is_empty()).then_some(Self { listed, whole, excludes })
    }

    /// Whether it lists what may be used, not what may not.
    pub(super) fn names_devices(&self) -> bool {
        !self.listed.is_empty() && !self.excludes
    }

    /// Whether this port of this device may be used.
    pub fn allows(&self, device: &str, port: u8) -> bool {
        if self.listed.is_empty() {
            return true;
        }
        let is_listed = self.listed.iter().any(|(name, only)| {
            let named = if self.whole { device == name } else { device.starts_with(name) };
            named && only.is_none_or(|only| only == port)
        });
        is_listed != self.excludes
    }
}

/// What is known of the RDMA paths to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaReport {
    /// The paths.
    pub paths: Vec<RdmaPath>,
    /// Messages that were sent again because their path was lost.
    pub repeated: u64,
    /// Messages that went over TCP, because no path was there.
    pub over_tcp: u64,
}

/// A path: a port at each end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaPath {
    /// The device and port of this rank, as `mlx5_0:1`.
    pub device: String,
    /// Messages travel over it at present.
    pub active: bool,
    /// Messages that were sent over it.
    pub messages: u64,
    /// How often it was lost.
    pub losses: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_the_grammar_of_nccl() {
        for (text, device, port, allowed) in [
            ("mlx5", "mlx5_0", 1, true),
            ("mlx5_0:1,mlx5_1:2", "mlx5_0", 2, false),
            ("mlx5_0:1,mlx5_1:2", "mlx5_1", 2, true),
            ("mlx5_1", "mlx5_10", 1, true),
            ("=mlx5_1", "mlx5_10", 1, false),
            ("=mlx5_1,mlx5_10", "mlx5_10", 1, true),
            ("^mlx5_1", "mlx5_10", 1, false),
            ("^=mlx5_1", "mlx5_10", 1, true),
            ("^=mlx5_1:2", "mlx5_1", 1, true),
            ("^mlx4", "mlx5_0", 1, true),
        ] {
            let filter = AdapterFilter::parse(text).unwrap();
            assert_eq!(filter.allows(device, port), allowed, "{text} {device}:{port}");
        }
        assert!(AdapterFilter::default().allows("any", 7));
        for wrong in ["", "^", "=", ":1", "a:x", "a:300"] {
            assert_eq!(AdapterFilter::parse(wrong), None, "{wrong}");
        }
    }
}
