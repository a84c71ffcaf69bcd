//! The topology of this machine, from the kernel's files or from a file in NCCL's format.
//!
//! [`read`] reads the folders `sys` and `proc` below a root folder, which is `/`, or a copy of
//! those of another machine. A file that is missing leaves out what it would say: a container
//! without `/sys` is one NUMA node without a number. NVLinks and compute capabilities of GPUs are
//! known to NVIDIA's management library alone, which is not asked yet; a file in NCCL's format
//! (`NCCL_TOPO_FILE`) states them.

mod dump;
mod files;
mod networks;
mod pci;
mod processors;
#[cfg(test)]
mod tests;

use std::path::Path;

use maypole_algorithms::topology::{CpuSet, Machine, PciLink, xml};

pub(crate) use dump::follow_settings;
pub use dump::write_file;
use files::Folder;

/// What this machine is, and what of it this process may use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// The machine.
    pub machine: Machine,
    /// The links of the PCI devices in [`Self::machine`], by the addresses of these.
    pub links: Vec<LinkState>,
    /// The processors that this process may use, by its affinity mask, which the control group
    /// limits. Empty if that is unknown.
    pub allowed: CpuSet,
}

/// The link of a PCI device to what is above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// The device.
    pub bus: maypole_algorithms::topology::BusId,
    /// What it runs at now. Devices that save energy lower the speed while they are idle.
    pub current: PciLink,
    /// The most that both ends are able to.
    pub most: PciLink,
}

/// Why a topology file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file cannot be read or written.
    #[error("{path}: {what}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        what: String,
    },
    /// It is not in NCCL's format.
    #[error("{path}: {error}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        error: xml::XmlError,
    },
}

/// Reads the machine whose folders `sys` and `proc` lie below `root`.
pub fn read(root: &Path) -> Inventory {
    let root = Folder::new(root);
    let allowed = processors::allowed();
    let mut machine = processors::read(&root, &allowed);
    let mut links = Vec::new();
    pci::add_devices(&root, &mut machine, &mut links);
    // Nodes of memory alone say nothing about ranks and devices.
    let used = |cpus: &CpuSet, devices: usize| !cpus.is_empty() || devices > 0;
    machine.nodes.retain(|it| used(&it.cpus, it.devices.len() + it.adapters.len()));
    Inventory { machine, links, allowed }
}

/// Reads a file in NCCL's format.
///
/// # Errors
/// The file cannot be read, or is not in that format.
pub fn read_file(path: &Path) -> Result<xml::Reading, FileError> {
    let name = || path.display().to_string();
    let text = files::text_of_file(path).map_err(|what| FileError::Io { path: name(), what })?;
    xml::read(&text).map_err(|error| FileError::Format { path: name(), error })
}
