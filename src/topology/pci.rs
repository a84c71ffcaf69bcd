//! The PCI devices of a machine that matter for communication: GPUs, network adapters, and the
//! switches above them.

use std::collections::BTreeMap;
use std::path::Path;

use maypole_algorithms::topology::{
    BusId, Gpu, Machine, NumaNode, PciClass, PciDevice, PciIds, PciKind, PciLink,
};

use super::LinkState;
use super::files::Folder;
use super::networks;

/// NVIDIA's number among the makers of PCI devices.
const NVIDIA: u16 = 0x10de;
/// Broadcom's number; its switches may have links of their own between them.
const BROADCOM: u16 = 0x1000;

/// A device on the path from a processor down to a GPU or an adapter.
struct Found {
    device: PciDevice,
    above: Option<BusId>,
    numa: Option<u32>,
}

/// Adds the GPUs and network adapters below the NUMA nodes to which they are connected, and the
/// states of their links.
pub(super) fn add_devices(root: &Folder, machine: &mut Machine, links: &mut Vec<LinkState>) {
    let mut found = BTreeMap::new();
    let folder = root.below("sys/bus/pci/devices");
    let mut gpus = 0;
    for name in folder.names() {
        let Some(real) = folder.below(&name).real() else { continue };
        let ids = ids(&real);
        if class(&real).kind() == PciKind::Gpu && ids.vendor == Some(NVIDIA) {
            let Some(device) = add_path(root, real.path(), &mut found, links) else { continue };
            device.gpus.push(Gpu { dev: Some(gpus), ..Gpu::default() });
            gpus += 1;
        }
    }
    let networks = networks::read(root);
    for (path, network) in networks.on_pci {
        if let Some(device) = add_path(root, &path, &mut found, links) {
            device.adapter.get_or_insert_default().networks.push(network);
        }
    }
    attach(found, machine);
    links.sort_by_key(|link| link.bus);
    if let Some(first) = machine.nodes.first_mut() {
        first.adapters.extend(networks.elsewhere);
    }
}

/// Adds the device whose folder is `path` and the switches above it, if they are not there.
///
/// A path such as `pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0` has a root port,
/// the upstream and the downstream port of a switch, and a device. As in NCCL, every second is
/// taken, from the device up: a switch is its upstream port, and root ports are left out.
fn add_path<'a>(
    root: &Folder,
    path: &Path,
    found: &'a mut BTreeMap<BusId, Found>,
    links: &mut Vec<LinkState>,
) -> Option<&'a mut PciDevice> {
    let devices = root.below("sys/bus/pci/devices");
    let names = path.iter().filter_map(|name| name.to_str()?.parse::<BusId>().ok());
    let all: Vec<BusId> = names.collect();
    let taken: Vec<BusId> = all.iter().rev().step_by(2).copied().collect();
    for (number, bus) in taken.iter().enumerate() {
        found.entry(*bus).or_insert_with(|| {
            // A name of another case or length does not occur: the kernel made both.
            let folder = devices.below(&bus.to_string());
            let folder = folder.real().unwrap_or(folder);
            let mut device = PciDevice::new(*bus, class(&folder));
            device.ids = ids(&folder);
            device.link = most(&folder).common(above(&folder));
            if device.ids.vendor == Some(BROADCOM) {
                device.peers = peers(root, *bus);
            }
            links.push(LinkState { bus: *bus, current: current(&folder), most: device.link });
            Found {
                device,
                above: taken.get(number + 1).copied(),
                numa: folder.number("numa_node"),
            }
        });
    }
    found.get_mut(taken.first()?).map(|found| &mut found.device)
}

/// Puts devices below the switches and NUMA nodes that they are connected to.
fn attach(mut found: BTreeMap<BusId, Found>, machine: &mut Machine) {
    let addresses: Vec<BusId> = found.keys().copied().collect();
    // The deepest first, so that each device has all that is below it before it is moved.
    let depth = |found: &BTreeMap<BusId, Found>, mut bus: BusId| {
        let mut depth = 0;
        while let Some(above) = found.get(&bus).and_then(|it| it.above) {
            (bus, depth) = (above, depth + 1);
        }
        depth
    };
    let mut order: Vec<(usize, BusId)> =
        addresses.iter().map(|bus| (depth(&found, *bus), *bus)).collect();
    order.sort_by_key(|(depth, bus)| (usize::MAX - depth, *bus));
    for (_, bus) in order {
        let Some(Found { device, above, numa }) = found.remove(&bus) else { continue };
        match above.and_then(|above| found.get_mut(&above)) {
            Some(above) => above.device.children.push(device),
            None => node_of(machine, numa).devices.push(device),
        }
    }
}

/// The NUMA node with this number. A device without one belongs to the only node, or else to a node
/// of its own without a number, as in NCCL.
fn node_of(machine: &mut Machine, number: Option<u32>) -> &mut NumaNode {
    let nodes = &mut machine.nodes;
    let known = nodes.iter().position(|node| node.number == number);
    let only = (number.is_none() && nodes.len() == 1).then_some(0);
    let index = known.or(only).unwrap_or_else(|| {
        let processor = nodes.first().map(|node| node.processor.clone()).unwrap_or_default();
        nodes.push(NumaNode { number, processor, ..NumaNode::default() });
        nodes.len() - 1
    });
    &mut nodes[index]
}

fn class(folder: &Folder) -> PciClass {
    PciClass(folder.hexadecimal("class").unwrap_or(PciClass::BRIDGE.0) & 0xff_ffff)
}

fn ids(folder: &Folder) -> PciIds {
    let id = |name| folder.hexadecimal(name).and_then(|id| u16::try_from(id).ok());
    PciIds {
        vendor: id("vendor"),
        device: id("device"),
        subsystem_vendor: id("subsystem_vendor"),
        subsystem_device: id("subsystem_device"),
    }
}

fn link(folder: &Folder, speed: &str, width: &str) -> PciLink {
    PciLink {
        speed: folder.text(speed).as_deref().and_then(PciLink::parse_speed),
        width: folder.text(width).as_deref().and_then(PciLink::parse_width),
    }
}

/// The most that a device is able to.
fn most(folder: &Folder) -> PciLink {
    link(folder, "max_link_speed", "max_link_width")
}

/// The most that the port above a device is able to.
fn above(folder: &Folder) -> PciLink {
    folder.path().parent().map_or(PciLink::default(), |above| most(&Folder::new(above)))
}

fn current(folder: &Folder) -> PciLink {
    link(folder, "current_link_speed", "current_link_width")
}

/// The switches to which a switch has a link of its own.
fn peers(root: &Folder, bus: BusId) -> Vec<BusId> {
    let folder = root.below("sys/kernel/pci_switch_link/virtual_switch_links");
    let names = folder.below(&bus.to_string()).names().into_iter();
    names.filter_map(|name| name.parse().ok()).collect()
}
