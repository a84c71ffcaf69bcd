//! The network devices of a machine: ports of RDMA adapters, and interfaces of the kernel.

use std::path::PathBuf;

use maypole_algorithms::topology::{BusId, Network, NetworkAdapter};

use super::files::Folder;

/// The type of an interface that the kernel calls loopback.
const LOOPBACK: u32 = 772;

/// The network devices, by where they are.
#[derive(Debug, Default)]
pub(super) struct Networks {
    /// Those of PCI devices, with the folders of these.
    pub(super) on_pci: Vec<(PathBuf, Network)>,
    /// Those that are no PCI devices, such as the interfaces of a container.
    pub(super) elsewhere: Vec<NetworkAdapter>,
}

/// Reads the ports of RDMA adapters, then the interfaces of adapters without RDMA. Interfaces that
/// are no hardware are taken only if there is nothing else. Devices are numbered in this order; one
/// that is down gets no number.
pub(super) fn read(root: &Folder) -> Networks {
    let mut networks = Networks::default();
    let mut elsewhere = Vec::new();
    let mut number = 0;
    let mut numbered = |network: Network, is_up: bool| {
        let dev = is_up.then_some(number);
        number += u32::from(is_up);
        Network { dev, ..network }
    };
    for (path, network, is_up) in rdma_ports(root) {
        networks.on_pci.push((path, numbered(network, is_up)));
    }
    let with_rdma: Vec<PathBuf> = networks.on_pci.iter().map(|(path, _)| path.clone()).collect();
    for (path, network, is_up) in interfaces(root) {
        match path {
            Some(path) if with_rdma.contains(&path) => {}
            Some(path) => networks.on_pci.push((path, numbered(network, is_up))),
            None if is_up => elsewhere.push(network),
            None => {}
        }
    }
    if networks.on_pci.is_empty() {
        let adapter = |network| NetworkAdapter { networks: vec![numbered(network, true)] };
        networks.elsewhere = elsewhere.into_iter().map(adapter).collect();
    }
    networks
}

/// The ports of RDMA adapters in the order of their PCI addresses, and whether each is active.
fn rdma_ports(root: &Folder) -> Vec<(PathBuf, Network, bool)> {
    let gdr = reaches_gpus(root);
    let folder = root.below("sys/class/infiniband");
    let mut ports = Vec::new();
    for name in folder.names() {
        let device = folder.below(&name);
        let Some(path) = pci_folder(&device.below("device")) else { continue };
        let guid = device.text("node_guid").map(|guid| guid.replace(':', ""));
        let guid = guid.and_then(|guid| u64::from_str_radix(&guid, 16).ok());
        for port in device.below("ports").numbered("") {
            let folder = device.below(&format!("ports/{port}"));
            let speed = folder.text("rate").as_deref().and_then(megabits);
            let is_active = folder.text("state").is_some_and(|state| state.starts_with('4'));
            let network = Network {
                name: name.clone(),
                speed,
                port: Some(port),
                guid,
                gdr: gdr.then_some(true),
                ..Network::default()
            };
            ports.push((path.clone(), network, is_active));
        }
    }
    ports.sort_by_key(|(path, network, _)| (last_address(path), network.port));
    ports
}

/// Whether the kernel lets RDMA adapters access the memory of NVIDIA's GPUs by its modules. (By
/// dma-buf it may do so without them, which only a trial can show.)
fn reaches_gpus(root: &Folder) -> bool {
    let signs = ["sys/module/nvidia_peermem", "sys/kernel/mm/memory_peers/nv_mem"];
    signs.into_iter().any(|folder| root.below(folder).text("version").is_some())
}

/// The interfaces except loopback, with the folders of their PCI devices if they have one, and
/// whether each is up.
fn interfaces(root: &Folder) -> Vec<(Option<PathBuf>, Network, bool)> {
    let folder = root.below("sys/class/net");
    let mut interfaces = Vec::new();
    for name in folder.names() {
        let interface = folder.below(&name);
        if interface.number("type") == Some(LOOPBACK) {
            continue;
        }
        // A speed of -1 is unknown, and an interface that is down has an unreadable one.
        let speed = interface.number("speed").filter(|speed| *speed > 0);
        let is_up = interface.text("operstate").is_some_and(|state| state == "up");
        let path = pci_folder(&interface.below("device"));
        interfaces.push((path, Network { name, speed, ..Network::default() }, is_up));
    }
    interfaces
}

/// The folder of the PCI device to which a device belongs, directly or by a bus of its own, such as
/// virtio.
fn pci_folder(device: &Folder) -> Option<PathBuf> {
    let mut path = device.real()?.path().to_owned();
    while last_address(&path).is_none() {
        if !path.pop() {
            return None;
        }
    }
    Some(path)
}

fn last_address(path: &std::path::Path) -> Option<BusId> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The Mbit/s of a rate such as `400 Gb/sec (4X NDR)` or `2.5 Gb/sec (1X SDR)`.
fn megabits(rate: &str) -> Option<u32> {
    let (number, unit) = rate.split_once(' ')?;
    let rate: f64 = number.parse().ok()?;
    let known = unit.starts_with("Gb/sec") && rate > 0.0 && rate < 1e6;
    known.then_some((rate * 1000.0) as u32)
}
