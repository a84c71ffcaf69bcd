//! How far the GPUs, network devices and NUMA nodes of a machine are from each other.

use super::BusId;
use super::gpu_direct::{Direction, GpuDirect, GpuDirectPair, GpuDirectSettings};
use super::graph::{GpuVertex, MachineGraph, NetworkVertex};
use super::machine::Machine;
use super::path::{Path, PathKind};

/// A GPU of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuPlace {
    /// The address of its PCI device.
    pub bus: BusId,
    /// The number that NVIDIA's tools give it, or its place in the list.
    pub dev: u32,
    /// The compute capability, 0 if unknown.
    pub sm: u32,
    /// The rank that uses it.
    pub rank: Option<u32>,
    /// The index of its NUMA node in the machine.
    pub node: usize,
    gdr: bool,
}

/// A network device of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlace {
    /// The name.
    pub name: String,
    /// The address of its PCI device. None if it is no PCI device.
    pub bus: Option<BusId>,
    /// The transport's number.
    pub dev: u32,
    /// The index of its NUMA node in the machine.
    pub node: usize,
    /// Equal for devices on one rail: what the file says, else each adapter is on its own.
    pub rail: u64,
    /// Equal for devices on one plane of their rail.
    pub plane: u32,
    gdr: bool,
}

/// The paths between GPUs, network devices and NUMA nodes.
#[derive(Clone, Debug)]
pub struct Distances {
    /// The GPUs, in the order of the machine.
    pub gpus: Vec<GpuPlace>,
    /// The network devices that the host sends by, in the order of the machine.
    pub networks: Vec<NetworkPlace>,
    settings: GpuDirectSettings,
    gpu_to_gpu: Vec<Vec<Path>>,
    gpu_to_network: Vec<Vec<Path>>,
    node_to_network: Vec<Vec<Path>>,
    node_to_gpu: Vec<Vec<Path>>,
}

impl Distances {
    /// Finds all paths. Where GPUDirect is not used between a GPU and a network device, their path
    /// goes through the processor next to the GPU.
    pub fn new(machine: &Machine, settings: GpuDirectSettings) -> Self {
        let graph = MachineGraph::new(machine);
        let gpus: Vec<GpuPlace> = graph.gpus.iter().enumerate().map(gpu_place).collect();
        let networks = graph.networks.iter().enumerate().map(network_place).collect();
        let gpu_vertices: Vec<_> = graph.gpus.iter().map(|gpu| gpu.vertex).collect();
        let network_vertices: Vec<_> = graph.networks.iter().map(|net| net.vertex).collect();
        let rows = |from: &[usize], to: &[usize]| -> Vec<Vec<Path>> {
            let row = |&from: &usize| {
                let paths = graph.paths_from(from);
                to.iter().map(|&to| paths[to]).collect()
            };
            from.iter().map(row).collect()
        };
        let mut distances = Self {
            gpu_to_gpu: rows(&gpu_vertices, &gpu_vertices),
            gpu_to_network: rows(&gpu_vertices, &network_vertices),
            node_to_network: rows(&graph.nodes, &network_vertices),
            node_to_gpu: rows(&graph.nodes, &gpu_vertices),
            gpus,
            networks,
            settings,
        };
        distances.use_chip_links();
        distances.go_through_processors();
        distances
    }

    /// The path between two GPUs, by their indices.
    pub fn between_gpus(&self, a: usize, b: usize) -> Path {
        self.gpu_to_gpu[a][b]
    }

    /// The path between a GPU and a network device, by their indices.
    pub fn gpu_to_network(&self, gpu: usize, network: usize) -> Path {
        self.gpu_to_network[gpu][network]
    }

    /// The path between a NUMA node and a network device, by their indices.
    pub fn node_to_network(&self, node: usize, network: usize) -> Path {
        self.node_to_network[node][network]
    }

    /// Whether data moves directly between a GPU and a network device.
    pub fn gpu_direct(&self, gpu: usize, network: usize, direction: Direction) -> GpuDirect {
        let place = &self.gpus[gpu];
        let others = (0..self.gpus.len()).filter(|other| *other != gpu);
        let nvlink = others.map(|other| self.gpu_to_gpu[gpu][other].kind);
        let pair = GpuDirectPair {
            kind: self.gpu_to_network[gpu][network].kind,
            network_can: self.networks[network].gdr,
            gpu_can: place.gdr,
            sm: place.sm,
            keeps_pci_free: self.gpus.len() == 1 || nvlink.into_iter().any(|k| k == PathKind::Nvl),
        };
        self.settings.decide(pair, direction)
    }

    /// A GPU with a chip-to-chip link reaches the nearest network devices of its processor as well
    /// as by PCI switches.
    fn use_chip_links(&mut self) {
        for gpu in 0..self.gpus.len() {
            let node = self.gpus[gpu].node;
            let chip_link = self.node_to_gpu[node][gpu].kind == PathKind::C2c;
            for network in nearest(&self.gpu_to_network[gpu]) {
                let through_bridge = self.node_to_network[node][network].kind == PathKind::Phb;
                let path = &mut self.gpu_to_network[gpu][network];
                if chip_link && through_bridge {
                    path.kind = path.kind.min(PathKind::P2c);
                }
            }
        }
    }

    fn go_through_processors(&mut self) {
        for gpu in 0..self.gpus.len() {
            for network in 0..self.networks.len() {
                let near = self.gpu_to_network[gpu][network].kind < PathKind::Phb;
                if near && self.gpu_direct(gpu, network, Direction::Receive) != GpuDirect::Used {
                    let node = self.gpus[gpu].node;
                    let onward = self.node_to_network[node][network];
                    self.gpu_to_network[gpu][network] = self.node_to_gpu[node][gpu].then(onward);
                }
            }
        }
    }
}

/// The widest paths, and among these the best kind: NCCL's rule for what is local.
pub(super) fn nearest(paths: &[Path]) -> Vec<usize> {
    let widest = paths.iter().map(|path| path.bandwidth).fold(0.0, f64::max);
    let wide = |path: &&Path| path.bandwidth == widest && path.kind < PathKind::Dis;
    let Some(best) = paths.iter().filter(wide).map(|path| path.kind).min() else {
        return Vec::new();
    };
    let local = |index: &usize| paths[*index].bandwidth == widest && paths[*index].kind == best;
    (0..paths.len()).filter(local).collect()
}

impl Distances {
    /// The network devices that are local to a GPU.
    pub(super) fn networks_near_gpu(&self, gpu: usize) -> Vec<usize> {
        nearest(&self.gpu_to_network[gpu])
    }

    /// The GPUs that are local to a network device.
    pub(super) fn gpus_near_network(&self, network: usize) -> Vec<usize> {
        let paths: Vec<Path> = self.gpu_to_network.iter().map(|row| row[network]).collect();
        nearest(&paths)
    }

    /// The network devices that are local to a NUMA node.
    pub(super) fn networks_near_node(&self, node: usize) -> Vec<usize> {
        nearest(&self.node_to_network[node])
    }
}

fn gpu_place((index, vertex): (usize, &GpuVertex<'_>)) -> GpuPlace {
    let GpuVertex { device, gpu, node, .. } = vertex;
    GpuPlace {
        bus: device.bus,
        dev: gpu.dev.unwrap_or(index as u32),
        sm: gpu.sm.unwrap_or(0),
        rank: gpu.rank,
        node: *node,
        gdr: gpu.gdr == Some(true),
    }
}

fn network_place((index, vertex): (usize, &NetworkVertex<'_>)) -> NetworkPlace {
    let NetworkVertex { bus, network, port, node, .. } = vertex;
    // Rails that are stated, adapters and places in the list are different kinds of numbers.
    let rail = match (network.rail, network.guid) {
        (Some(rail), _) => u64::from(rail),
        (None, Some(guid)) => guid | 1 << 63,
        (None, None) => 1 << 62 | index as u64,
    };
    NetworkPlace {
        name: network.name.clone(),
        bus: *bus,
        dev: network.dev.unwrap_or(0),
        node: *node,
        rail,
        plane: network.plane.unwrap_or(*port),
        gdr: network.gdr == Some(true),
    }
}
