//! Machines for tests.

use super::{
    BusId, ChipLink, CpuSet, Gpu, Machine, Network, NetworkAdapter, NumaNode, NvLink, PciClass,
    PciDevice, PciIds, PciLink, Processor,
};

pub(super) fn bus(text: &str) -> BusId {
    text.parse().expect("an address")
}

fn link() -> PciLink {
    PciLink { speed: Some(320), width: Some(16) }
}

fn bridge(text: &str, children: Vec<PciDevice>) -> PciDevice {
    let ids = PciIds { vendor: Some(0x1000), device: Some(0xc030), ..PciIds::default() };
    PciDevice { children, link: link(), ids, ..PciDevice::new(bus(text), PciClass::BRIDGE) }
}

fn gpu(text: &str, dev: u32, nvlinks: Vec<NvLink>) -> PciDevice {
    let gpu = Gpu {
        dev: Some(dev),
        sm: Some(90),
        rank: Some(dev),
        gdr: Some(true),
        nvlinks,
        ..Gpu::default()
    };
    PciDevice { gpus: vec![gpu], link: link(), ..PciDevice::new(bus(text), PciClass::GPU) }
}

fn adapter(text: &str, dev: u32) -> PciDevice {
    let network = Network {
        name: format!("mlx5_{dev}"),
        dev: Some(dev),
        speed: Some(400_000),
        latency: Some(0.5),
        port: Some(1),
        guid: Some(0x9803_9b00 + u64::from(dev)),
        max_connections: Some(131_072),
        gdr: Some(true),
        ..Network::default()
    };
    let adapter = Some(NetworkAdapter { networks: vec![network] });
    PciDevice { adapter, link: link(), ..PciDevice::new(bus(text), PciClass(0x02_0700)) }
}

fn node(number: u32, cpus: &str, devices: Vec<PciDevice>) -> NumaNode {
    NumaNode {
        number: Some(number),
        cpus: CpuSet::from_list(cpus).expect("a list"),
        processor: Processor {
            architecture: Some("x86_64".into()),
            vendor: Some("GenuineIntel".into()),
            family: Some(6),
            model: Some(143),
        },
        devices,
        ..NumaNode::default()
    }
}

/// Eight GPUs, eight adapters, two sockets. Each socket has two switches, each of these two further
/// ones, and below each of these are one GPU and one adapter. The GPUs are connected by NVLink
/// switches.
pub(super) fn dgx() -> Machine {
    let switched = || {
        vec![NvLink {
            target: Some(bus("0000:07:00.0")),
            count: 18,
            class: Some(PciClass::NV_SWITCH),
        }]
    };
    let pair = |number: u32| {
        let base = 0x10 + 8 * number;
        let at = |offset: u32| format!("0000:{:02x}:00.0", base + offset);
        bridge(&at(2), vec![gpu(&at(3), number, switched()), adapter(&at(4), number)])
    };
    let quad = |first: u32| {
        let at = format!("0000:{:02x}:00.0", 0x11 + 8 * first);
        bridge(&at, vec![pair(first), pair(first + 1)])
    };
    Machine {
        nodes: vec![
            node(0, "0-55,112-167", vec![quad(0), quad(2)]),
            node(1, "56-111,168-223", vec![quad(4), quad(6)]),
        ],
        cpus: Vec::new(),
    }
}

/// One switch with GPUs and adapters below it.
pub(super) fn one_switch(gpus: u32, adapters: u32) -> Machine {
    let mut devices: Vec<_> =
        (0..gpus).map(|dev| gpu(&format!("0000:{:02x}:00.0", 2 + dev), dev, vec![])).collect();
    devices.extend((0..adapters).map(|dev| adapter(&format!("0000:{:02x}:00.0", 0x80 + dev), dev)));
    Machine { nodes: vec![node(0, "0-7", vec![bridge("0000:01:00.0", devices)])], cpus: Vec::new() }
}

/// A GPU with a chip-to-chip link to its processor, and an adapter on the processor.
pub(super) fn on_processor() -> Machine {
    let mut gpu = gpu("0009:01:00.0", 0, vec![]);
    gpu.gpus[0].c2c = Some(ChipLink { bandwidth: 44_712, count: 10 });
    Machine {
        nodes: vec![node(0, "0-71", vec![gpu, adapter("0000:01:00.0", 0)])],
        cpus: Vec::new(),
    }
}

/// Four GPUs on one processor in a row, with NVLink between neighbours.
pub(super) fn nvlink_chain() -> Machine {
    let at = |number: i64| format!("0000:{:02x}:00.0", 1 + number);
    let nvlink =
        |other: i64| NvLink { target: Some(bus(&at(other))), count: 4, class: Some(PciClass::GPU) };
    let devices = (0..4_i64).map(|number| {
        let neighbours = [number - 1, number + 1].into_iter().filter(|n| (0..4).contains(n));
        gpu(&at(number), number as u32, neighbours.map(nvlink).collect())
    });
    Machine { nodes: vec![node(0, "0-7", devices.collect())], cpus: Vec::new() }
}

/// Calls `change` for all network devices, in their order.
pub(super) fn for_each_network(machine: &mut Machine, change: &mut dyn FnMut(&mut Network)) {
    fn visit(devices: &mut [PciDevice], change: &mut dyn FnMut(&mut Network)) {
        for device in devices {
            device.adapter.iter_mut().flat_map(|it| &mut it.networks).for_each(&mut *change);
            visit(&mut device.children, change);
        }
    }
    machine.nodes.iter_mut().for_each(|node| visit(&mut node.devices, change));
}
