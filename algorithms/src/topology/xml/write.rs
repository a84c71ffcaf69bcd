//! Writes a topology file as NCCL's reader takes it.

use std::fmt::{Display, Write as _};

use super::{HIDDEN_TARGET, VERSION};
use crate::markup::escape;
use crate::topology::{
    Gpu, Machine, Network, NetworkAdapter, NumaNode, PciDevice, PciLink, Processor,
};

/// The most elements that NCCL reads from a file.
pub const MOST_ELEMENTS: usize = 256;

/// The file of `machine`. It has all but [`Machine::cpus`].
pub fn write(machine: &Machine) -> String {
    let mut text = String::new();
    let mut system = Tag::new("system");
    system.attribute("version", VERSION);
    system.write(&mut text, 0, machine.nodes.is_empty(), |text| {
        machine.nodes.iter().for_each(|node| numa_node(text, node));
    });
    text
}

/// How many elements the file of `machine` has. NCCL refuses files with more than
/// [`MOST_ELEMENTS`].
pub fn element_count(machine: &Machine) -> usize {
    let adapters = |adapter: &NetworkAdapter| 1 + adapter.networks.len();
    let gpus = |gpu: &Gpu| 1 + gpu.nvlinks.len() + usize::from(gpu.c2c.is_some());
    let devices = machine.pci_devices().into_iter().map(|(_, device)| {
        1 + device.peers.len()
            + device.gpus.iter().map(gpus).sum::<usize>()
            + device.adapter.as_ref().map_or(0, adapters)
    });
    let nodes =
        machine.nodes.iter().map(|node| 1 + node.adapters.iter().map(adapters).sum::<usize>());
    1 + devices.sum::<usize>() + nodes.sum::<usize>()
}

/// An element with its attributes, which NCCL wants on one line with one blank between them.
struct Tag {
    name: &'static str,
    attributes: String,
}

impl Tag {
    fn new(name: &'static str) -> Self {
        Self { name, attributes: String::new() }
    }

    fn attribute(&mut self, name: &str, value: impl Display) {
        let _ = write!(self.attributes, " {name}=\"{}\"", escape(&value.to_string()));
    }

    fn known(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.attribute(name, value);
        }
    }

    fn flag(&mut self, name: &str, value: Option<bool>) {
        self.known(name, value.map(u8::from));
    }

    fn write(
        self,
        text: &mut String,
        depth: usize,
        is_empty: bool,
        content: impl FnOnce(&mut String),
    ) {
        let Self { name, attributes } = self;
        let indent = 2 * depth;
        if is_empty {
            let _ = writeln!(text, "{:indent$}<{name}{attributes}/>", "");
            return;
        }
        let _ = writeln!(text, "{:indent$}<{name}{attributes}>", "");
        content(text);
        let _ = writeln!(text, "{:indent$}</{name}>", "");
    }
}

fn numa_node(text: &mut String, node: &NumaNode) {
    let mut tag = Tag::new("cpu");
    tag.known("host_hash", node.host.map(|host| format!("0x{host:x}")));
    tag.attribute("numaid", node.number.map_or(-1, i64::from));
    if !node.cpus.is_empty() {
        tag.attribute("affinity", node.cpus.mask());
    }
    let Processor { architecture, vendor, family, model } = &node.processor;
    tag.known("arch", architecture.as_ref());
    tag.known("vendor", vendor.as_ref());
    tag.known("familyid", *family);
    tag.known("modelid", *model);
    let is_empty = node.devices.is_empty() && node.adapters.is_empty();
    tag.write(text, 1, is_empty, |text| {
        node.devices.iter().for_each(|device| pci(text, device, 2));
        node.adapters.iter().for_each(|adapter| nic(text, adapter, 2));
    });
}

fn pci(text: &mut String, device: &PciDevice, depth: usize) {
    let mut tag = Tag::new("pci");
    tag.attribute("busid", device.bus);
    tag.attribute("class", device.class);
    let id = |id: Option<u16>| id.map(|id| format!("0x{id:04x}"));
    tag.known("vendor", id(device.ids.vendor));
    tag.known("device", id(device.ids.device));
    tag.known("subsystem_vendor", id(device.ids.subsystem_vendor));
    tag.known("subsystem_device", id(device.ids.subsystem_device));
    let PciLink { speed, width } = device.link;
    let speed = speed.map(|speed| format!("{}.{} GT/s PCIe", speed / 10, speed % 10));
    // If they are missing, NCCL takes them from /sys.
    tag.attribute("link_speed", speed.unwrap_or_default());
    tag.attribute("link_width", width.unwrap_or(0));
    let PciDevice { gpus, adapter, children, peers, .. } = device;
    let leaf = gpus.is_empty() && adapter.is_none();
    tag.write(text, depth, leaf && children.is_empty() && peers.is_empty(), |text| {
        gpus.iter().for_each(|it| gpu(text, it, depth + 1));
        adapter.iter().for_each(|adapter| nic(text, adapter, depth + 1));
        for peer in peers {
            let mut tag = Tag::new("pcilink");
            tag.attribute("target", peer);
            tag.write(text, depth + 1, true, |_| {});
        }
        children.iter().for_each(|child| pci(text, child, depth + 1));
    });
}

fn gpu(text: &mut String, gpu: &Gpu, depth: usize) {
    let mut tag = Tag::new("gpu");
    tag.known("dev", gpu.dev);
    tag.known("sm", gpu.sm);
    tag.known("rank", gpu.rank);
    tag.flag("gdr", gpu.gdr);
    tag.known("mlopart", gpu.partition);
    let is_empty = gpu.nvlinks.is_empty() && gpu.c2c.is_none();
    tag.write(text, depth, is_empty, |text| {
        for nvlink in &gpu.nvlinks {
            let mut tag = Tag::new("nvlink");
            let target = nvlink.target.map(|target| target.to_string());
            tag.attribute("target", target.as_deref().unwrap_or(HIDDEN_TARGET));
            tag.attribute("count", nvlink.count);
            tag.known("tclass", nvlink.class);
            tag.write(text, depth + 1, true, |_| {});
        }
        if let Some(c2c) = gpu.c2c {
            let mut tag = Tag::new("c2c");
            tag.attribute("bw", c2c.bandwidth);
            tag.attribute("count", c2c.count);
            tag.write(text, depth + 1, true, |_| {});
        }
    });
}

fn nic(text: &mut String, adapter: &NetworkAdapter, depth: usize) {
    Tag::new("nic").write(text, depth, adapter.networks.is_empty(), |text| {
        for network in &adapter.networks {
            network_tag(network).write(text, depth + 1, true, |_| {});
        }
    });
}

fn network_tag(network: &Network) -> Tag {
    let mut tag = Tag::new(network.kind.element());
    tag.attribute("name", &network.name);
    tag.known("dev", network.dev);
    tag.known("latency", network.latency);
    tag.known("speed", network.speed);
    tag.known("port", network.port);
    tag.known("guid", network.guid.map(|guid| format!("0x{guid:x}")));
    tag.known("rail", network.rail);
    tag.known("plane", network.plane);
    tag.known("maxconn", network.max_connections);
    tag.flag("gdr", network.gdr);
    tag.flag("net", network.net);
    tag.flag("coll", network.coll);
    tag.flag("gin", network.gin);
    tag.flag("rma", network.rma);
    tag.flag("keep", network.keep);
    tag
}
