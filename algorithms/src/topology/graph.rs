//! A machine as a graph, and the best paths in it.
//!
//! The rules are NCCL's: of two paths the one with fewer links is better, and of equally long ones
//! the wider. A path does not go through a GPU, except by NVLink to one further GPU.

use super::devices::{Network, PciDevice};
use super::machine::{Machine, Processor};
use super::path::{Path, PathKind};
use super::pci::{PciIds, PciKind};
use super::{BusId, NumaNode};

/// GB/s within a device, which no other link reaches.
const LOCAL: f64 = 5000.0;

/// The number of a vertex.
pub(super) type VertexId = usize;

/// What a vertex stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vertex {
    Node,
    Switch,
    Adapter,
    Network,
    Gpu,
    NvSwitch,
}

/// The technology of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Technology {
    Nvlink,
    ChipToChip,
    Pci,
    /// Between two switches directly.
    Peer,
    BetweenNodes,
    Cable,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    to: VertexId,
    technology: Technology,
    bandwidth: f64,
}

/// A GPU of the graph.
#[derive(Debug)]
pub(super) struct GpuVertex<'a> {
    pub(super) vertex: VertexId,
    pub(super) device: &'a PciDevice,
    pub(super) gpu: &'a super::Gpu,
    /// The index of the NUMA node.
    pub(super) node: usize,
}

/// A network device of the graph.
#[derive(Debug)]
pub(super) struct NetworkVertex<'a> {
    pub(super) vertex: VertexId,
    pub(super) bus: Option<BusId>,
    pub(super) network: &'a Network,
    /// The number among the devices of its adapter.
    pub(super) port: u32,
    /// The index of the NUMA node.
    pub(super) node: usize,
}

#[derive(Debug, Default)]
pub(super) struct MachineGraph<'a> {
    vertices: Vec<Vertex>,
    links: Vec<Vec<Link>>,
    pub(super) gpus: Vec<GpuVertex<'a>>,
    pub(super) networks: Vec<NetworkVertex<'a>>,
    /// By the index of a NUMA node its vertex.
    pub(super) nodes: Vec<VertexId>,
    /// The switches, with the hosts that they are in.
    switches: Vec<(Option<u64>, &'a PciDevice, VertexId)>,
    nv_switches: Vec<(Option<u64>, VertexId)>,
}

impl<'a> MachineGraph<'a> {
    pub(super) fn new(machine: &'a Machine) -> Self {
        let mut graph = Self::default();
        for (index, node) in machine.nodes.iter().enumerate() {
            let vertex = graph.add(Vertex::Node);
            graph.nodes.push(vertex);
            for device in &node.devices {
                graph.add_device(device, (vertex, None), node, index);
            }
            for adapter in &node.adapters {
                graph.add_adapter(&adapter.networks, vertex, None, LOCAL, index);
            }
        }
        graph.add_nvlinks(machine);
        graph.add_peer_links();
        for (a, first) in machine.nodes.iter().enumerate() {
            for (b, second) in machine.nodes.iter().enumerate().skip(a + 1) {
                if first.host == second.host {
                    let bandwidth = between_nodes(&first.processor);
                    let ends = (graph.nodes[a], graph.nodes[b]);
                    graph.connect(ends, Technology::BetweenNodes, bandwidth);
                }
            }
        }
        graph
    }

    fn add(&mut self, vertex: Vertex) -> VertexId {
        self.vertices.push(vertex);
        self.links.push(Vec::new());
        self.vertices.len() - 1
    }

    /// Connects two vertices in both directions; further links of one technology add up.
    fn connect(&mut self, ends: (VertexId, VertexId), technology: Technology, bandwidth: f64) {
        self.connect_one_way(ends, technology, bandwidth);
        self.connect_one_way((ends.1, ends.0), technology, bandwidth);
    }

    fn connect_one_way(
        &mut self,
        (from, to): (VertexId, VertexId),
        technology: Technology,
        bandwidth: f64,
    ) {
        let links = &mut self.links[from];
        let same = |link: &&mut Link| link.to == to && link.technology == technology;
        match links.iter_mut().find(same) {
            Some(link) => link.bandwidth += bandwidth,
            None => links.push(Link { to, technology, bandwidth }),
        }
    }

    fn add_device(
        &mut self,
        device: &'a PciDevice,
        (above, switch): (VertexId, Option<&PciIds>),
        node: &NumaNode,
        index: usize,
    ) {
        if switch.is_some_and(|switch| is_part_of(&device.ids, switch)) {
            for child in &device.children {
                self.add_device(child, (above, None), node, index);
            }
            return;
        }
        let bandwidth = device.link.bandwidth();
        for gpu in &device.gpus {
            let vertex = self.add(Vertex::Gpu);
            self.connect((vertex, above), Technology::Pci, bandwidth);
            self.gpus.push(GpuVertex { vertex, device, gpu, node: index });
        }
        if let Some(adapter) = &device.adapter {
            self.add_adapter(&adapter.networks, above, Some(device.bus), bandwidth, index);
        }
        let leaf = !device.gpus.is_empty() || device.adapter.is_some();
        if !leaf || !device.children.is_empty() {
            let vertex = self.add(Vertex::Switch);
            self.connect((vertex, above), Technology::Pci, bandwidth);
            self.switches.push((node.host, device, vertex));
            for child in &device.children {
                self.add_device(child, (vertex, Some(&device.ids)), node, index);
            }
        }
    }

    fn add_adapter(
        &mut self,
        networks: &'a [Network],
        above: VertexId,
        bus: Option<BusId>,
        bandwidth: f64,
        node: usize,
    ) {
        let adapter = self.add(Vertex::Adapter);
        self.connect((adapter, above), Technology::Pci, bandwidth);
        for (port, network) in (0..).zip(networks) {
            if network.is_usable() {
                let vertex = self.add(Vertex::Network);
                self.connect((vertex, adapter), Technology::Cable, network.bandwidth());
                self.networks.push(NetworkVertex { vertex, bus, network, port, node });
            }
        }
    }

    /// Both ends of an NVLink between GPUs state it; each adds its own direction.
    fn add_nvlinks(&mut self, machine: &Machine) {
        let places: Vec<(usize, VertexId, BusId)> =
            self.gpus.iter().map(|it| (it.node, it.vertex, it.device.bus)).collect();
        for number in 0..self.gpus.len() {
            let GpuVertex { vertex, gpu, node, .. } = self.gpus[number];
            let host = machine.nodes[node].host;
            let per_link = nvlink_bandwidth(gpu.sm.unwrap_or(0));
            for nvlink in &gpu.nvlinks {
                let bandwidth = f64::from(nvlink.count) * per_link;
                let kind = nvlink.class.map_or_else(
                    || if nvlink.target.is_some() { PciKind::Gpu } else { PciKind::NvSwitch },
                    |class| class.kind(),
                );
                match kind {
                    PciKind::Gpu => {
                        let peers = places.iter().filter(|(other, _, bus)| {
                            machine.nodes[*other].host == host && Some(*bus) == nvlink.target
                        });
                        let peers: Vec<VertexId> = peers.map(|(_, peer, _)| *peer).collect();
                        for peer in &peers {
                            let share = bandwidth / peers.len() as f64;
                            self.connect_one_way((vertex, *peer), Technology::Nvlink, share);
                        }
                    }
                    PciKind::Processor => {
                        let end = self.nodes[node];
                        self.connect((vertex, end), Technology::Nvlink, bandwidth);
                    }
                    // As in NCCL, all switches of a host count as one.
                    _ => {
                        let known = self.nv_switches.iter().find(|(of, _)| *of == host);
                        let end = known.map(|(_, end)| *end).unwrap_or_else(|| {
                            let end = self.add(Vertex::NvSwitch);
                            self.nv_switches.push((host, end));
                            end
                        });
                        self.connect((vertex, end), Technology::Nvlink, bandwidth);
                    }
                }
            }
            if let Some(c2c) = gpu.c2c {
                let bandwidth = f64::from(c2c.bandwidth) * f64::from(c2c.count) / 1000.0;
                self.connect((vertex, self.nodes[node]), Technology::ChipToChip, bandwidth);
            }
        }
    }

    fn add_peer_links(&mut self) {
        let mut found = Vec::new();
        for (host, device, from) in &self.switches {
            for peer in &device.peers {
                let to = self.switches.iter().find(|(h, other, _)| h == host && other.bus == *peer);
                found.extend(to.map(|(_, _, to)| (*from, *to)));
            }
        }
        for ends in found {
            self.connect_one_way(ends, Technology::Peer, LOCAL);
        }
    }

    /// The best paths from `base` to all vertices.
    pub(super) fn paths_from(&self, base: VertexId) -> Vec<Path> {
        let mut paths = vec![Path::NONE; self.vertices.len()];
        paths[base] = Path { kind: PathKind::Loc, bandwidth: LOCAL, hops: 0 };
        let mut level = vec![base];
        while !level.is_empty() {
            let mut next = Vec::new();
            for &from in &level {
                let so_far = paths[from];
                for link in &self.links[from] {
                    let Some(longer) = self.extend(base, from, so_far, link) else { continue };
                    let known = &mut paths[link.to];
                    let first = known.kind == PathKind::Dis;
                    if first || (known.hops == longer.hops && known.bandwidth < longer.bandwidth) {
                        *known = longer;
                        if !next.contains(&link.to) {
                            next.push(link.to);
                        }
                    }
                }
            }
            level = next;
        }
        paths
    }

    /// The path that goes on by `link`, if it may.
    fn extend(&self, base: VertexId, from: VertexId, path: Path, link: &Link) -> Option<Path> {
        let through_gpu = self.vertices[from] == Vertex::Gpu && from != base;
        let to_gpu = self.vertices[link.to] == Vertex::Gpu;
        let further_nvlink = link.technology == Technology::Nvlink && to_gpu && path.hops == 1;
        if through_gpu && !further_nvlink {
            return None;
        }
        let ends = [self.vertices[from], self.vertices[link.to]];
        let kind = match link.technology {
            Technology::Nvlink if through_gpu => PathKind::Nvb,
            Technology::Nvlink => PathKind::Nvl,
            Technology::ChipToChip => PathKind::C2c,
            Technology::Pci if ends == [Vertex::Switch; 2] => PathKind::Pxb,
            Technology::Pci if ends.contains(&Vertex::Node) => PathKind::Phb,
            Technology::Pci => PathKind::Pix,
            Technology::BetweenNodes => PathKind::Sys,
            // The path of interest is that between the adapter and the other device.
            Technology::Peer | Technology::Cable => PathKind::Loc,
        };
        Some(path.then(Path { kind, bandwidth: link.bandwidth, hops: 1 }))
    }
}

/// Whether a switch is part of the one above it. Some switches of Broadcom present themselves as
/// two levels, although all their ports are equally near to each other; NCCL makes one of them,
/// too.
fn is_part_of(ids: &PciIds, above: &PciIds) -> bool {
    let model = |ids: &PciIds| {
        let part = ids.subsystem_device? >> 12;
        match (ids.vendor?, ids.device?, ids.subsystem_vendor?) {
            (0x1000, 0xc010, 0x1000) => Some((4, part)),
            (0x1000, 0xc030, 0x1000) => Some((5, part)),
            _ => None,
        }
    };
    matches!(
        (model(above), model(ids)),
        (Some((4, 0xa)), Some((4, 0xa))) | (Some((5, 0)), Some((5, 1)))
    )
}

/// GB/s of one NVLink of a GPU, by its compute capability; NCCL's figures.
fn nvlink_bandwidth(sm: u32) -> f64 {
    match sm {
        107.. => 31.2,
        100.. => 40.1,
        90.. => 20.6,
        86 => 12.0,
        70.. => 20.0,
        60.. => 18.0,
        _ => 20.0,
    }
}

/// GB/s between the NUMA nodes of a host; NCCL's figures.
fn between_nodes(processor: &Processor) -> f64 {
    let family = processor.family.unwrap_or(0);
    let model = processor.model.unwrap_or(0);
    match (processor.architecture.as_deref(), processor.vendor.as_deref()) {
        (Some("ppc64"), _) => 32.0,
        (Some("arm64"), _) => 6.0,
        (Some("x86_64"), Some("GenuineIntel")) => match model {
            // Granite Rapids and Sierra Forest are newer than their numbers suggest.
            0xad..=0xaf | 0xcf.. if family == 6 => 40.0,
            0x8f.. if family == 6 => 22.0,
            0x55.. if family == 6 => 10.0,
            _ => 6.0,
        },
        (Some("x86_64"), Some("AuthenticAMD")) => match family {
            // Each generation also under the number that older versions of NCCL wrote.
            26 | 0xbf => 32.0,
            25 | 0xaf => 24.0,
            _ => 16.0,
        },
        (Some("x86_64"), Some("CentaurHauls" | "  Shanghai  ")) => match (family, model) {
            (7, 0x5b) => 9.0,
            _ => 6.0,
        },
        _ => LOCAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_connected_as_fast_as_their_processors_allow() {
        let speed = |architecture: &str, vendor: &str, family, model| {
            between_nodes(&Processor {
                architecture: Some(architecture.into()),
                vendor: Some(vendor.into()),
                family: Some(family),
                model: Some(model),
            })
        };
        let intel = |model| speed("x86_64", "GenuineIntel", 6, model);
        assert_eq!([0x4f, 0x55, 0x8f, 0xcf, 0xad].map(intel), [6.0, 10.0, 22.0, 40.0, 40.0]);
        let amd = |family| speed("x86_64", "AuthenticAMD", family, 1);
        assert_eq!([23, 25, 26, 0xaf, 0xbf].map(amd), [16.0, 24.0, 32.0, 24.0, 32.0]);
        assert_eq!((speed("arm64", "", 0, 0), speed("ppc64", "", 0, 0)), (6.0, 32.0));
        assert_eq!(between_nodes(&Processor::default()), LOCAL);
    }
}
