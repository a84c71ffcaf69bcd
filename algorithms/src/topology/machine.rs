//! A machine: its processors, and the devices on its PCI buses.

use super::cpu_set::CpuSet;
use super::devices::{Gpu, NetworkAdapter, PciDevice};

/// One machine, or several that share an NVLink fabric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// The NUMA nodes with the devices that are connected to them. There is one without a number
    /// where the kernel knows no NUMA.
    pub nodes: Vec<NumaNode>,
    /// The logical processors. NCCL's files do not have them.
    pub cpus: Vec<LogicalCpu>,
}

/// A NUMA node: processors that share memory, and the devices that are connected to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NumaNode {
    /// The kernel's number. None where the kernel knows no NUMA; NCCL writes -1 then.
    pub number: Option<u32>,
    /// Tells the hosts of a file with several apart. NCCL does not keep it between runs.
    pub host: Option<u64>,
    /// The logical processors of the node.
    pub cpus: CpuSet,
    /// The model of the processors.
    pub processor: Processor,
    /// The PCI devices below the node.
    pub devices: Vec<PciDevice>,
    /// Network adapters that are no PCI devices.
    pub adapters: Vec<NetworkAdapter>,
}

/// The model of a processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// `x86_64`, `arm64` or `ppc64`.
    pub architecture: Option<String>,
    /// As x86 processors name it: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: Option<String>,
    /// The family, as x86 processors number it.
    pub family: Option<u32>,
    /// The model in the family.
    pub model: Option<u32>,
}

/// A logical processor: a core, or one of the threads of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalCpu {
    /// The kernel's number.
    pub number: u32,
    /// The number of the socket.
    pub socket: u32,
    /// The number of the core in its socket.
    pub core: u32,
    /// The NUMA node. None where the kernel knows no NUMA.
    pub node: Option<u32>,
    /// The lowest number among the processors that share its third-level cache. None without such
    /// a cache.
    pub l3: Option<u32>,
}

impl Machine {
    /// The processors that share a third-level cache, by the lowest number in each group. Empty if
    /// the caches are not known.
    pub fn l3_groups(&self) -> Vec<CpuSet> {
        self.groups(|cpu| cpu.l3)
    }

    /// The processors of each socket. Empty if the sockets are not known.
    pub fn sockets(&self) -> Vec<(u32, CpuSet)> {
        let mut numbers: Vec<u32> = self.cpus.iter().map(|cpu| cpu.socket).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let of = |socket| self.cpus.iter().filter(move |cpu| cpu.socket == socket);
        numbers.into_iter().map(|s| (s, of(s).map(|cpu| cpu.number).collect())).collect()
    }

    /// The socket of a NUMA node. None if it is not known, or if the node spans several.
    pub fn socket_of(&self, node: &NumaNode) -> Option<u32> {
        let mut on_node = self.cpus.iter().filter(|cpu| node.cpus.contains(cpu.number));
        let first = on_node.next()?.socket;
        on_node.all(|cpu| cpu.socket == first).then_some(first)
    }

    /// How many cores there are: threads of one core count once.
    pub fn cores(&self) -> usize {
        let mut cores: Vec<_> = self.cpus.iter().map(|cpu| (cpu.socket, cpu.core)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.len()
    }

    /// All PCI devices with the index of their NUMA node, from the processors down.
    pub fn pci_devices(&self) -> Vec<(usize, &PciDevice)> {
        fn add<'a>(node: usize, devices: &'a [PciDevice], all: &mut Vec<(usize, &'a PciDevice)>) {
            for device in devices {
                all.push((node, device));
                add(node, &device.children, all);
            }
        }
        let mut all = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            add(index, &node.devices, &mut all);
        }
        all
    }

    /// Removes GPUs for which `keep` is false, and then bridges and NUMA nodes that have nothing
    /// left below them. A file may describe more than a job uses.
    pub fn trim(&mut self, keep: &dyn Fn(&PciDevice, &Gpu) -> bool) {
        fn trim(devices: &mut Vec<PciDevice>, keep: &dyn Fn(&PciDevice, &Gpu) -> bool) {
            for device in devices.iter_mut() {
                trim(&mut device.children, keep);
                let kept = device.gpus.iter().map(|gpu| keep(device, gpu)).collect::<Vec<_>>();
                let mut kept = kept.into_iter();
                device.gpus.retain(|_| kept.next() == Some(true));
            }
            devices.retain(|it| {
                !it.gpus.is_empty() || it.adapter.is_some() || !it.children.is_empty()
            });
        }
        for node in &mut self.nodes {
            trim(&mut node.devices, keep);
        }
        self.nodes.retain(|node| !node.devices.is_empty() || !node.adapters.is_empty());
    }

    /// The processors with equal labels, by the lowest number in each group.
    fn groups(&self, label: impl Fn(&LogicalCpu) -> Option<u32>) -> Vec<CpuSet> {
        let mut groups: Vec<(u32, CpuSet)> = Vec::new();
        for cpu in &self.cpus {
            let Some(label) = label(cpu) else { continue };
            match groups.iter_mut().find(|(known, _)| *known == label) {
                Some((_, group)) => group.insert(cpu.number),
                None => groups.push((label, CpuSet::from_iter([cpu.number]))),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples;

    #[test]
    fn trimming_leaves_what_leads_to_a_gpu_or_an_adapter() {
        let mut machine = examples::dgx();
        machine.trim(&|_, gpu| gpu.rank == Some(5));
        let left = machine.pci_devices();
        let gpus: Vec<_> = left.iter().flat_map(|(_, it)| &it.gpus).map(|gpu| gpu.rank).collect();
        assert_eq!(gpus, [Some(5)]);
        // Four switches, eight inner switches, eight adapters and the GPU.
        assert_eq!((machine.nodes.len(), left.len()), (2, 4 + 8 + 8 + 1));
        let mut machine = examples::one_switch(2, 0);
        machine.trim(&|_, _| false);
        assert!(machine.nodes.is_empty());
    }
}
