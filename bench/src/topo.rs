//! `maypole topo`: how the processors, network devices and GPUs of this machine are connected.

use std::path::{Path, PathBuf};

use maypole::config::Config;
use maypole::internal::topology::{self, FileError, Inventory};
use maypole_algorithms::topology::{Distances, GpuDirectSettings, NetworkChoice, draw, list};

use crate::status::{self, Failure};

/// The options of `maypole topo`.
#[derive(Debug, clap::Args)]
pub(crate) struct TopoArguments {
    /// Write a picture of the machine (SVG)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the machine in NCCL's format (as NCCL_TOPO_DUMP_FILE)
    #[arg(long, value_name = "FILE")]
    xml: Option<PathBuf>,
    /// Describe the machine of this file in NCCL's format (as NCCL_TOPO_FILE)
    #[arg(long, value_name = "FILE", conflicts_with = "root")]
    from: Option<PathBuf>,
    /// Describe the machine whose folders sys and proc lie in this folder
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// Prints the machine, and writes the files. Returns the exit status.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn run(arguments: &TopoArguments) -> Result<u8, Failure> {
    let setting = Config::get().topology_file.as_ref().map(PathBuf::from);
    let setting = setting.filter(|_| arguments.root.is_none());
    let root = arguments.root.as_deref();
    if let Some(root) = root.filter(|root| !root.is_dir()) {
        return Err(Failure::usage(format!("{} is no folder", root.display())));
    }
    let (text, machine) = match arguments.from.as_ref().or(setting.as_ref()) {
        Some(path) => {
            let reading = topology::read_file(path).map_err(failure)?;
            let notes = reading.notes.iter().map(|note| format!("{note}\n")).collect::<String>();
            (format!("from {}\n{notes}", path.display()), reading.machine)
        }
        None => {
            let inventory = topology::read(root.unwrap_or(Path::new("/")));
            let here = if root.is_none() { this_process(&inventory) } else { String::new() };
            (here, inventory.machine)
        }
    };
    let distances = Distances::new(&machine, GpuDirectSettings::default());
    let choice = NetworkChoice::new(&distances, machine.nodes.len());
    print!("{text}{}", list(&machine, &distances, &choice));
    if let Some(path) = &arguments.svg {
        std::fs::write(path, draw(&machine))
            .map_err(|error| Failure::system(format!("{}: {error}", path.display())))?;
    }
    if let Some(path) = &arguments.xml {
        topology::write_file(path, &machine).map_err(failure)?;
    }
    Ok(status::FINE)
}

fn this_process(inventory: &Inventory) -> String {
    let Inventory { machine, allowed, .. } = inventory;
    let all: usize = machine.nodes.iter().map(|node| node.cpus.len()).sum();
    if allowed.len() == all || allowed.is_empty() {
        return String::new();
    }
    format!("this process may use processors {allowed} of {all}\n")
}

fn failure(error: FileError) -> Failure {
    match &error {
        FileError::Format { .. } => Failure::usage(error.to_string()),
        _ => Failure::system(error.to_string()),
    }
}
