//! The devices of a machine: PCI devices, and the GPUs and network devices among them.

use super::bus_id::BusId;
use super::pci::{PciClass, PciIds, PciLink};

/// A PCI device with what is below it. As in NCCL's files, a switch is its upstream port; root
/// ports and downstream ports are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct PciDevice {
    /// Its address.
    pub bus: BusId,
    /// What it is.
    pub class: PciClass,
    /// Who made it.
    pub ids: PciIds,
    /// The link to what is above it.
    pub link: PciLink,
    /// The GPU, or the partitions of a GPU that is divided.
    pub gpus: Vec<Gpu>,
    /// The network adapter.
    pub adapter: Option<NetworkAdapter>,
    /// The devices below it.
    pub children: Vec<Self>,
    /// Switches to which this switch has a link of its own (`pcilink`).
    pub peers: Vec<BusId>,
}

/// A GPU, or a partition of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// The number that NVIDIA's tools give it. None if it is not known.
    pub dev: Option<u32>,
    /// The compute capability: 90 for 9.0.
    pub sm: Option<u32>,
    /// The rank that uses it.
    pub rank: Option<u32>,
    /// Whether network devices may read and write its memory.
    pub gdr: Option<bool>,
    /// The number of the partition (`mlopart`).
    pub partition: Option<u32>,
    /// Its NVLinks, by what is at their other end.
    pub nvlinks: Vec<NvLink>,
    /// Its links to a processor on the same board.
    pub c2c: Option<ChipLink>,
}

/// The NVLinks between a GPU and one other device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvLink {
    /// The other device. None if this virtual machine does not show it; it is a switch then.
    pub target: Option<BusId>,
    /// How many links there are.
    pub count: u32,
    /// The class of the other device. None if the file does not say it.
    pub class: Option<PciClass>,
}

/// The links between a GPU and a processor on the same board (NVLink-C2C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChipLink {
    /// MB/s of one link.
    pub bandwidth: u32,
    /// How many links there are.
    pub count: u32,
}

/// A network adapter with its ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkAdapter {
    /// One for each port, and for each interface of a library that uses it.
    pub networks: Vec<Network>,
}

/// What a network device is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkKind {
    /// Messages of the host (`net`).
    #[default]
    Net,
    /// Messages that GPU kernels send (`gin`).
    Gin,
    /// One-sided access (`rma`).
    Rma,
}

/// A network device: a port of an adapter, as a transport names and numbers it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// What it is used for.
    pub kind: NetworkKind,
    /// The name: `mlx5_0`, `eth0`.
    pub name: String,
    /// The transport's number. A device without one is not used.
    pub dev: Option<u32>,
    /// Mbit/s. None if it is unknown; it counts as 10,000 then, as in NCCL.
    pub speed: Option<u32>,
    /// Microseconds.
    pub latency: Option<f64>,
    /// The port of the adapter.
    pub port: Option<u32>,
    /// A number that tells adapters apart.
    pub guid: Option<u64>,
    /// The most connections.
    pub max_connections: Option<u32>,
    /// Whether it can read and write the memory of GPUs.
    pub gdr: Option<bool>,
    /// The network that it is connected to, where hosts have several separate ones. NCCL adds
    /// 65536 to numbers that it made up itself.
    pub rail: Option<u32>,
    /// The part of the rail that it is connected to.
    pub plane: Option<u32>,
    /// Whether its switches reduce.
    pub coll: Option<bool>,
    /// Whether GPU kernels send by it; in files before the element `gin`.
    pub gin: Option<bool>,
    /// Whether it is used for one-sided access; in files before the element `rma`.
    pub rma: Option<bool>,
    /// Whether the host sends by it. `false` for a port that was merged into another device.
    pub net: Option<bool>,
    /// Whether NCCL keeps it when it removes what a job does not use.
    pub keep: Option<bool>,
}

impl NetworkKind {
    /// The name of its element in NCCL's files.
    pub fn element(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Gin => "gin",
            Self::Rma => "rma",
        }
    }
}

impl Network {
    /// Whether messages of the host travel by this device.
    pub fn is_usable(&self) -> bool {
        self.kind == NetworkKind::Net && self.net != Some(false) && self.dev.is_some()
    }

    /// GB/s (10^9).
    pub fn bandwidth(&self) -> f64 {
        f64::from(self.speed.unwrap_or(10_000)) / 8000.0
    }
}

impl PciDevice {
    /// A device without anything below it.
    pub fn new(bus: BusId, class: PciClass) -> Self {
        Self {
            bus,
            class,
            ids: PciIds::default(),
            link: PciLink::default(),
            gpus: Vec::new(),
            adapter: None,
            children: Vec::new(),
            peers: Vec::new(),
        }
    }
}
