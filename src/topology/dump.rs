//! What `NCCL_TOPO_FILE` and `NCCL_TOPO_DUMP_FILE` do when a communicator is made.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use maypole_algorithms::topology::{Machine, xml};

use super::{FileError, read, read_file};
use crate::config::Config;

/// Writes `machine` in NCCL's format.
///
/// # Errors
/// The file cannot be written.
pub fn write_file(path: &Path, machine: &Machine) -> Result<(), FileError> {
    let write = || {
        let mut options = OpenOptions::new();
        // To open a pipe without a reader would wait for one; with this flag it is an error.
        options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
        options.open(path)?.write_all(xml::write(machine).as_bytes())
    };
    write().map_err(|error: std::io::Error| FileError::Io {
        path: path.display().to_string(),
        what: error.to_string(),
    })
}

/// Checks the file that `NCCL_TOPO_FILE` names, and writes the one that `NCCL_TOPO_DUMP_FILE`
/// names if this is the rank to do so. The communicator works without either, so that a file that
/// cannot be used is a warning.
pub(crate) fn follow_settings(config: &Config, rank: u32) {
    let described = config.topology_file.as_deref().and_then(machine_of_file);
    let Some(path) = &config.topology_dump else { return };
    if rank != config.topology_dump_rank {
        return;
    }
    let machine = described.unwrap_or_else(|| read(Path::new("/")).machine);
    match write_file(Path::new(path), &machine) {
        Ok(()) => log::info!(target: "GRAPH", "the topology of this machine is in {path}"),
        Err(error) => log::warn!("NCCL_TOPO_DUMP_FILE cannot be written: {error}"),
    }
    let (elements, most) = (xml::element_count(&machine), xml::MOST_ELEMENTS);
    if elements > most {
        log::warn!("{path} has {elements} elements; NCCL reads at most {most}");
    }
}

fn machine_of_file(path: &str) -> Option<Machine> {
    match read_file(Path::new(path)) {
        Ok(xml::Reading { machine, notes, .. }) => {
            let (nodes, devices) = (machine.nodes.len(), machine.pci_devices().len());
            log::info!(target: "GRAPH", "{path} has {nodes} NUMA nodes and {devices} PCI devices");
            for note in notes {
                log::info!(target: "GRAPH", "{path}: {note}");
            }
            Some(machine)
        }
        Err(error) => {
            log::warn!("NCCL_TOPO_FILE cannot be used; this machine is described by /sys: {error}");
            None
        }
    }
}
