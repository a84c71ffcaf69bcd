//! The processors of a machine: NUMA nodes, sockets, cores and third-level caches.

use maypole_algorithms::topology::{CpuSet, LogicalCpu, Machine, NumaNode, Processor};

use super::files::Folder;

/// The NUMA nodes and processors. `allowed` stands for the processors if the kernel's files do not
/// say which there are.
pub(super) fn read(root: &Folder, allowed: &CpuSet) -> Machine {
    let processor = model(root);
    let folder = root.below("sys/devices/system/node");
    let list = |text: Option<String>| text.as_deref().and_then(CpuSet::from_list);
    let mut nodes: Vec<NumaNode> = Vec::new();
    for number in folder.numbered("node") {
        let cpus = list(folder.below(&format!("node{number}")).text("cpulist"));
        nodes.push(NumaNode {
            number: Some(number),
            cpus: cpus.unwrap_or_default(),
            processor: processor.clone(),
            ..NumaNode::default()
        });
    }
    let folder = root.below("sys/devices/system/cpu");
    let online = list(folder.text("online"));
    if nodes.is_empty() {
        let cpus = online.clone().unwrap_or_else(|| allowed.clone());
        nodes.push(NumaNode { cpus, processor, ..NumaNode::default() });
    }
    // A processor that is offline keeps its folder, without its topology.
    let of_node = |cpu: u32| nodes.iter().find(|node| node.cpus.contains(cpu))?.number;
    let numbers = folder.numbered("cpu").into_iter();
    let cpus = numbers.filter(|cpu| online.as_ref().is_none_or(|online| online.contains(*cpu)));
    let cpus = cpus.filter_map(|number| {
        let folder = folder.below(&format!("cpu{number}"));
        let topology = folder.below("topology");
        Some(LogicalCpu {
            number,
            // Some virtual machines and ARM's older kernels do not number sockets.
            socket: topology.number("physical_package_id").unwrap_or(0),
            core: topology.number("core_id")?,
            node: of_node(number),
            l3: third_level_cache(&folder),
        })
    });
    let cpus = cpus.collect();
    Machine { nodes, cpus }
}

/// The lowest number of the processors that share the third-level cache of a processor.
fn third_level_cache(cpu: &Folder) -> Option<u32> {
    let caches = cpu.below("cache");
    let indices = caches.numbered("index").into_iter();
    let mut caches = indices.map(|index| caches.below(&format!("index{index}")));
    let third = caches.find(|cache| cache.number("level") == Some(3))?;
    CpuSet::from_list(&third.text("shared_cpu_list")?)?.iter().next()
}

/// The model of the processors, from `/proc/cpuinfo`.
fn model(root: &Folder) -> Processor {
    let text = root.text("proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            // Blanks in a vendor's name matter, except for the one after the colon.
            (found.trim() == name).then(|| value.strip_prefix(' ').unwrap_or(value).to_owned())
        })
    };
    let vendor = field("vendor_id");
    let architecture = match (std::env::consts::ARCH, &vendor) {
        (_, Some(_)) => "x86_64",
        _ if field("CPU implementer").is_some() => "arm64",
        ("aarch64", _) => "arm64",
        ("powerpc64", _) => "ppc64",
        (other, _) => other,
    };
    let number = |name| field(name)?.trim().parse().ok();
    Processor {
        architecture: Some(architecture.to_owned()),
        vendor,
        family: number("cpu family"),
        model: number("model"),
    }
}

/// The processors in the affinity mask of this process; the kernel leaves out those that the
/// control group forbids. Empty if the mask is too long for a `cpu_set_t`.
pub(super) fn allowed() -> CpuSet {
    // SAFETY: all zeros are a valid set, and the kernel writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) {
            0 => set,
            _ => return CpuSet::default(),
        }
    };
    let bits = 8 * size_of_val(&set);
    // SAFETY: the number is less than the number of bits of a set.
    (0..bits).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).map(|cpu| cpu as u32).collect()
}
