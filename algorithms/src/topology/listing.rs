//! A machine as plain text: the tree of its devices, and which device uses which.

use std::fmt::Write as _;

use super::devices::{Gpu, Network, NetworkAdapter, NetworkKind, PciDevice};
use super::distances::Distances;
use super::gpu_direct::{Direction, GpuDirect};
use super::machine::{Machine, NumaNode};
use super::network_choice::NetworkChoice;
use super::pci::{PciKind, PciLink};

/// A line of the tree with the lines below it.
struct Branch {
    text: String,
    below: Vec<Self>,
}

impl Branch {
    fn leaf(text: String) -> Self {
        Self { text, below: Vec::new() }
    }

    fn print(&self, text: &mut String, indent: &str) {
        for (number, branch) in self.below.iter().enumerate() {
            let last = number + 1 == self.below.len();
            let (mark, more) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let _ = writeln!(text, "{indent}{mark}{}", branch.text);
            branch.print(text, &format!("{indent}{more}"));
        }
    }
}

/// The text of `machine`, with what each GPU and NUMA node uses.
pub fn list(machine: &Machine, distances: &Distances, choice: &NetworkChoice) -> String {
    let mut text = summary(machine, distances);
    for node in &machine.nodes {
        let branch = node_branch(machine, node);
        let _ = writeln!(text, "{}", branch.text);
        branch.print(&mut text, "");
    }
    matrix(&mut text, distances);
    choices(&mut text, machine, distances, choice);
    text
}

/// `2 sockets, 2 NUMA nodes, 8 GPUs, 8 network devices`.
fn summary(machine: &Machine, distances: &Distances) -> String {
    let count = |number: usize, one: &str, many: &str| match number {
        1 => format!("1 {one}"),
        other => format!("{other} {many}"),
    };
    let mut parts = Vec::new();
    if !machine.cpus.is_empty() {
        parts.push(count(machine.sockets().len(), "socket", "sockets"));
        parts.push(count(machine.cores(), "core", "cores"));
        let l3 = machine.l3_groups().len();
        parts.push(count(l3, "third-level cache", "third-level caches"));
    }
    parts.push(count(machine.nodes.len(), "NUMA node", "NUMA nodes"));
    parts.push(count(distances.gpus.len(), "GPU", "GPUs"));
    parts.push(count(distances.networks.len(), "network device", "network devices"));
    parts.join(", ") + "\n\n"
}

fn node_branch(machine: &Machine, node: &NumaNode) -> Branch {
    let mut text = node_name(node);
    if !node.cpus.is_empty() {
        let _ = write!(text, ": processors {}", node.cpus);
    }
    if let Some(socket) = machine.socket_of(node) {
        let _ = write!(text, ", socket {socket}");
    }
    let processor = &node.processor;
    if let Some(vendor) = processor.vendor.as_ref().or(processor.architecture.as_ref()) {
        let _ = write!(text, ", {}", vendor.trim());
    }
    if let (Some(family), Some(model)) = (processor.family, processor.model) {
        let _ = write!(text, " family {family} model {model}");
    }
    let mut below = Vec::new();
    let caches = machine.l3_groups().into_iter().filter(|cpus| cpus.is_subset(&node.cpus));
    let caches: Vec<String> = caches.map(|cpus| cpus.to_string()).collect();
    if !caches.is_empty() {
        below.push(Branch::leaf(format!("third-level cache of {}", caches.join(" | of "))));
    }
    below.extend(node.devices.iter().map(device_branch));
    below.extend(node.adapters.iter().map(|adapter| {
        let below = adapter.networks.iter().map(network_branch).collect();
        Branch { text: "network without a PCI device".to_owned(), below }
    }));
    Branch { text, below }
}

/// `NUMA node 0`, or what stands for it on a machine without NUMA.
pub(super) fn node_name(node: &NumaNode) -> String {
    let host = node.host.map_or(String::new(), |host| format!(" of host {host:x}"));
    match node.number {
        Some(number) => format!("NUMA node {number}{host}"),
        None => format!("all processors (no NUMA){host}"),
    }
}

fn device_branch(device: &PciDevice) -> Branch {
    let text = format!("{} {}, {}", device.bus, device_name(device), link_name(device.link));
    let mut below: Vec<Branch> = Vec::new();
    for gpu in &device.gpus {
        let links = gpu.nvlinks.iter().map(|nvlink| {
            let target = nvlink.target.map_or("a switch".to_owned(), |bus| bus.to_string());
            Branch::leaf(format!("{} NVLinks to {target}", nvlink.count))
        });
        let chip = gpu.c2c.iter().map(|c2c| {
            Branch::leaf(format!("{} chip-to-chip links of {} MB/s", c2c.count, c2c.bandwidth))
        });
        let below_gpu = links.chain(chip).collect();
        below.push(Branch { text: gpu_name(gpu), below: below_gpu });
    }
    let networks = device.adapter.iter().flat_map(|NetworkAdapter { networks }| networks);
    below.extend(networks.map(network_branch));
    below.extend(device.peers.iter().map(|peer| Branch::leaf(format!("link to {peer}"))));
    below.extend(device.children.iter().map(device_branch));
    Branch { text, below }
}

/// `16.0 GT/s x16 (24.0 GB/s)`, or that nothing is known of the link.
pub(super) fn link_name(link: PciLink) -> String {
    match link {
        PciLink { speed: None, width: None } => "link unknown".to_owned(),
        known => format!("{known} ({:.1} GB/s)", known.bandwidth()),
    }
}

/// What a device is, in words.
pub(super) fn device_name(device: &PciDevice) -> &'static str {
    match device.class.kind() {
        _ if !device.gpus.is_empty() => "GPU",
        _ if device.adapter.is_some() => "network adapter",
        PciKind::Gpu => "display or GPU",
        PciKind::Network => "network adapter without interface",
        PciKind::NvSwitch => "NVLink switch",
        PciKind::Processor => "NVLink bridge",
        PciKind::Bridge => "switch or bridge",
    }
}

/// `GPU 0, sm 90, rank 3`.
pub(super) fn gpu_name(gpu: &Gpu) -> String {
    let mut text = gpu.dev.map_or("GPU".to_owned(), |dev| format!("GPU {dev}"));
    for (name, value) in [("partition", gpu.partition), ("sm", gpu.sm), ("rank", gpu.rank)] {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    text
}

fn network_branch(network: &Network) -> Branch {
    Branch::leaf(network_name(network))
}

/// `mlx5_0, port 1, 400 Gbit/s, rail 0`.
pub(super) fn network_name(network: &Network) -> String {
    let mut text = network.name.clone();
    if network.kind != NetworkKind::Net {
        let _ = write!(text, " ({})", network.kind.element());
    }
    if let Some(port) = network.port.filter(|port| *port > 0) {
        let _ = write!(text, ", port {port}");
    }
    match network.speed {
        Some(speed) => {
            let _ = write!(text, ", {} Gbit/s", f64::from(speed) / 1000.0);
        }
        None => text += ", speed unknown",
    }
    if let Some(rail) = network.rail {
        let _ = write!(text, ", rail {}", rail & 0xffff);
    }
    if !network.is_usable() && network.kind == NetworkKind::Net {
        text += ", not used";
    }
    text
}

/// The kinds of the paths between GPUs and network devices, as `nvidia-smi topo -m` shows them.
fn matrix(text: &mut String, distances: &Distances) {
    let (gpus, networks) = (&distances.gpus, &distances.networks);
    if gpus.is_empty() {
        return;
    }
    let gpu_names = gpus.iter().map(|gpu| format!("GPU{}", gpu.dev));
    let names: Vec<String> =
        gpu_names.chain(networks.iter().map(|network| network.name.clone())).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let _ = write!(text, "\n{:width$}", "");
    for name in &names {
        let _ = write!(text, "  {name:>width$}");
    }
    text.push('\n');
    for (row, name) in names.iter().take(gpus.len()).enumerate() {
        let _ = write!(text, "{name:width$}");
        for gpu in 0..gpus.len() {
            let _ = write!(text, "  {:>width$}", distances.between_gpus(row, gpu).kind);
        }
        for network in 0..networks.len() {
            let _ = write!(text, "  {:>width$}", distances.gpu_to_network(row, network).kind);
        }
        text.push('\n');
    }
}

fn choices(text: &mut String, machine: &Machine, distances: &Distances, choice: &NetworkChoice) {
    if distances.networks.is_empty() {
        return;
    }
    text.push('\n');
    let names = |devices: &[usize]| {
        let names = devices.iter().map(|device| &*distances.networks[*device].name);
        names.collect::<Vec<_>>().join(" ")
    };
    for (gpu, devices) in choice.by_gpu.iter().enumerate() {
        let dev = distances.gpus[gpu].dev;
        let Some(&first) = devices.first() else { continue };
        let path = distances.gpu_to_network(gpu, first);
        let direct = direct(distances, gpu, first);
        let _ = writeln!(
            text,
            "GPU {dev} uses {} ({}, {:.1} GB/s; {direct})",
            names(devices),
            path.kind,
            path.bandwidth
        );
    }
    for (node, devices) in machine.nodes.iter().zip(&choice.by_node) {
        if !devices.is_empty() {
            let _ = writeln!(text, "host memory of {} uses {}", node_name(node), names(devices));
        }
    }
}

/// Whether GPUDirect can be used, in words.
fn direct(distances: &Distances, gpu: usize, network: usize) -> String {
    let decide = |direction| distances.gpu_direct(gpu, network, direction);
    match (decide(Direction::Send), decide(Direction::Receive)) {
        (GpuDirect::Used, GpuDirect::Used) => "GPUDirect is possible".to_owned(),
        (_, GpuDirect::Used) => "GPUDirect is possible for receiving".to_owned(),
        (_, GpuDirect::NotByNetwork) => "no GPUDirect: not known of the network device".to_owned(),
        (_, GpuDirect::NotByGpu) => "no GPUDirect: not known of the GPU".to_owned(),
        (_, GpuDirect::TooFar { kind, level }) => {
            format!("no GPUDirect: {kind} is farther than {level}")
        }
        (_, GpuDirect::ReadNotWanted) => "no GPUDirect".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GpuDirectSettings, examples};
    use super::*;

    #[test]
    fn links_are_named_with_what_is_known() {
        let link = |speed, width| link_name(PciLink { speed, width });
        assert_eq!(link(None, None), "link unknown");
        assert_eq!(link(Some(160), Some(16)), "16.0 GT/s x16 (24.0 GB/s)");
        assert_eq!(link(None, Some(8)), "? GT/s x8 (6.0 GB/s)");
    }

    #[test]
    fn the_text_shows_the_tree_the_paths_and_the_choices() {
        let machine = examples::one_switch(2, 2);
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        let choice = NetworkChoice::new(&distances, 1);
        let text = list(&machine, &distances, &choice);
        let expected = "\
1 NUMA node, 2 GPUs, 2 network devices

NUMA node 0: processors 0-7, GenuineIntel family 6 model 143
└─ 0000:01:00.0 switch or bridge, 32.0 GT/s x16 (48.0 GB/s)
   ├─ 0000:02:00.0 GPU, 32.0 GT/s x16 (48.0 GB/s)
   │  └─ GPU 0, sm 90, rank 0
   ├─ 0000:03:00.0 GPU, 32.0 GT/s x16 (48.0 GB/s)
   │  └─ GPU 1, sm 90, rank 1
   ├─ 0000:80:00.0 network adapter, 32.0 GT/s x16 (48.0 GB/s)
   │  └─ mlx5_0, port 1, 400 Gbit/s
   └─ 0000:81:00.0 network adapter, 32.0 GT/s x16 (48.0 GB/s)
      └─ mlx5_1, port 1, 400 Gbit/s

          GPU0    GPU1  mlx5_0  mlx5_1
GPU0       LOC     PIX     PIX     PIX
GPU1       PIX     LOC     PIX     PIX

GPU 0 uses mlx5_0 (PIX, 48.0 GB/s; GPUDirect is possible)
GPU 1 uses mlx5_1 (PIX, 48.0 GB/s; GPUDirect is possible)
host memory of NUMA node 0 uses mlx5_0 mlx5_1
";
        assert_eq!(text, expected);
    }
}
