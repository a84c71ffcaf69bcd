//! What algorithms know about machines: which ranks share a node, and how the processors, network
//! devices and GPUs of one machine are connected.
//!
//! A [`Machine`] comes from the kernel's files (the crate `maypole` reads them) or from a file in
//! NCCL's format ([`xml`]). [`Distances`] says how far its devices are from each other,
//! [`NetworkChoice`] which network device each GPU and each NUMA node uses, [`RankGroups`] which
//! ranks of a host belong together. The names and figures are those of NCCL, so that what is
//! printed here can be compared with what NCCL prints.

mod bus_id;
mod cpu_set;
mod devices;
mod distances;
#[cfg(test)]
mod examples;
mod gpu_direct;
mod graph;
mod grouping;
mod listing;
mod machine;
mod network_choice;
mod path;
mod pci;
mod picture;
mod rank_groups;
pub mod xml;

pub use bus_id::BusId;
pub use cpu_set::CpuSet;
pub use devices::{ChipLink, Gpu, Network, NetworkAdapter, NetworkKind, NvLink, PciDevice};
pub use distances::{Distances, GpuPlace, NetworkPlace};
pub use gpu_direct::{Direction, GpuDirect, GpuDirectSettings};
pub use grouping::Grouping;
pub use listing::list;
pub use machine::{LogicalCpu, Machine, NumaNode, Processor};
pub use network_choice::NetworkChoice;
pub use path::{Path, PathKind};
pub use pci::{PciClass, PciIds, PciKind, PciLink};
pub use picture::draw;
pub use rank_groups::{RankGroups, SharedPart};
