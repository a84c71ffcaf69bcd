//! What the PCI devices and the clocks of the processors mean for the library.

use maypole::internal::topology::LinkState;
use maypole_algorithms::topology::PciDevice;

use super::{Finding, MachineFacts, Severity, finding, fine};

pub(super) fn diagnose(facts: &MachineFacts) -> Vec<Finding> {
    let mut all = vec![links(facts)];
    all.extend(placement(facts));
    all.push(clocks(facts));
    all.extend(topology_file(facts));
    all
}

/// Links that run below what both ends are able to.
fn links(facts: &MachineFacts) -> Finding {
    let devices = facts.inventory.machine.pci_devices();
    let (mut bad, mut idle) = (Vec::new(), Vec::new());
    for link in &facts.inventory.links {
        let device = devices.iter().find(|(_, device)| device.bus == link.bus);
        let Some((_, device)) = device else { continue };
        let narrow = below(link.current.width, link.most.width);
        let slow = below(link.current.speed, link.most.speed);
        if narrow || slow {
            let text = described(link, device);
            // A GPU lowers the speed of its link while it is idle, and never the width.
            let may_be_idle = !narrow && !device.gpus.is_empty();
            if may_be_idle { idle.push(text) } else { bad.push(text) }
        }
    }
    let change = "look for a loose or dirty slot, a riser or a bifurcation setting of the firmware \
                  that splits the slot, and errors in `dmesg`";
    if !bad.is_empty() {
        bad.extend(idle);
        let means = "messages of this device travel more slowly than it is able to";
        return finding("PCI links", bad.join("; "), Severity::Hurts, means, change);
    }
    if !idle.is_empty() {
        let means = "an idle GPU lowers the speed of its link; if it is the same under load, \
                     something is wrong with the slot";
        return finding(
            "PCI links",
            idle.join("; "),
            Severity::Note,
            means,
            "look again under load",
        );
    }
    let known = |link: &&LinkState| link.current.width.is_some() && link.most.width.is_some();
    match facts.inventory.links.iter().filter(known).count() {
        0 => fine("PCI links", "not known here".to_owned()),
        1 => fine("PCI links", "1 link runs as fast as it can".to_owned()),
        more => fine("PCI links", format!("{more} links run as fast as they can")),
    }
}

fn below(current: Option<u32>, most: Option<u32>) -> bool {
    matches!((current, most), (Some(current), Some(most)) if current < most)
}

/// `0000:01:00.0 (mlx5_0) at 16.0 GT/s x8 of 16.0 GT/s x16`.
fn described(link: &LinkState, device: &PciDevice) -> String {
    let networks = device.adapter.iter().flat_map(|adapter| &adapter.networks);
    let mut names: Vec<String> = networks.map(|network| network.name.clone()).collect();
    names.extend(device.gpus.iter().map(|gpu| format!("GPU {}", gpu.dev.unwrap_or(0))));
    names.dedup();
    let names = if names.is_empty() { "a switch".to_owned() } else { names.join(" ") };
    format!("{} ({names}) at {} of {}", link.bus, link.current, link.most)
}

/// Whether this process may run near a network device. Nothing is said where it is not known.
fn placement(facts: &MachineFacts) -> Option<Finding> {
    let machine = &facts.inventory.machine;
    let allowed = &facts.inventory.allowed;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (index, device) in machine.pci_devices() {
        let node = &machine.nodes[index];
        let Some(number) = node.number.filter(|_| !node.cpus.is_empty()) else { continue };
        let networks = device.adapter.iter().flat_map(|adapter| &adapter.networks);
        for network in networks.filter(|network| network.is_usable()) {
            let is_near = !node.cpus.intersection(allowed).is_empty();
            if is_near { &mut near } else { &mut far }.push((network.name.clone(), number));
        }
    }
    let text = |list: &[(String, u32)]| {
        let one = |(name, node): &(String, u32)| format!("{name} on NUMA node {node}");
        list.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    match (&near[..], &far[..]) {
        ([], []) => None,
        ([], [(_, node), ..]) => Some(finding(
            "placement",
            format!("{}, but this process may run on processors {allowed} only", text(&far)),
            Severity::Hurts,
            "every message crosses the connection between the NUMA nodes",
            &format!(
                "run the ranks near the device: numactl --cpunodebind={node}, or the binding \
                      options of the launcher"
            ),
        )),
        _ => Some(fine("placement", format!("near this process: {}", text(&near)))),
    }
}

fn clocks(facts: &MachineFacts) -> Finding {
    let driver = facts.clock_driver.as_deref().unwrap_or("no driver");
    if facts.governors.is_empty() {
        return fine("clocks", "not controlled by this kernel".to_owned());
    }
    let found = format!("{} ({driver})", facts.governors.join(", "));
    // In their active mode, these drivers raise the clock at once under either governor.
    let active = ["intel_pstate", "amd_pstate_epp", "amd-pstate-epp"].contains(&driver);
    let slow = |governor: &String| !matches!(&**governor, "performance" | "schedutil");
    if facts.governors.iter().any(slow) && !active {
        return finding(
            "clocks",
            found,
            Severity::Note,
            "a processor that was idle answers slowly at first, so that small messages take \
             longer and times differ from run to run",
            "cpupower frequency-set -g performance",
        );
    }
    fine("clocks", found)
}

fn topology_file(facts: &MachineFacts) -> Option<Finding> {
    let (path, read) = facts.topology_file.as_ref()?;
    Some(match read {
        Ok(()) => fine("topology file", path.clone()),
        Err(why) => finding(
            "topology file",
            path.clone(),
            Severity::Hurts,
            why,
            "correct NCCL_TOPO_FILE, or unset it",
        ),
    })
}

#[cfg(test)]
mod tests {
    use maypole::internal::topology::Inventory;
    use maypole_algorithms::topology::{
        CpuSet, Gpu, Machine, Network, NetworkAdapter, NumaNode, PciClass, PciLink,
    };

    use super::*;

    const FULL: PciLink = PciLink { speed: Some(160), width: Some(16) };

    /// Two NUMA nodes, of which the second has an adapter and a GPU.
    fn machine(allowed: &str, adapter: PciLink, gpu: PciLink) -> MachineFacts {
        let bus = |text: &str| text.parse().expect("an address");
        let network = Network { name: "mlx5_0".into(), dev: Some(0), ..Network::default() };
        let mut first = PciDevice::new(bus("0000:81:00.0"), PciClass::NETWORK);
        first.adapter = Some(NetworkAdapter { networks: vec![network] });
        let mut second = PciDevice::new(bus("0000:82:00.0"), PciClass::GPU);
        second.gpus = vec![Gpu { dev: Some(0), ..Gpu::default() }];
        let state =
            |device: &PciDevice, current| LinkState { bus: device.bus, current, most: FULL };
        let links = vec![state(&first, adapter), state(&second, gpu)];
        let node = |number, cpus, devices| NumaNode {
            number: Some(number),
            cpus: CpuSet::from_list(cpus).expect("a list"),
            devices,
            ..NumaNode::default()
        };
        let nodes = vec![node(0, "0-3", vec![]), node(1, "4-7", vec![first, second])];
        let allowed = CpuSet::from_list(allowed).expect("a list");
        let machine = Machine { nodes, ..Machine::default() };
        let inventory = Inventory { machine, links, allowed };
        MachineFacts { inventory, ..MachineFacts::default() }
    }

    #[test]
    fn a_narrow_link_hurts_and_an_idle_gpu_does_not() {
        let link = |adapter, gpu| links(&machine("0-7", adapter, gpu));
        assert_eq!(link(FULL, FULL).severity, Severity::Fine);
        let narrow = PciLink { width: Some(8), ..FULL };
        let slow = PciLink { speed: Some(25), ..FULL };
        for found in [link(narrow, FULL), link(slow, FULL), link(FULL, narrow)] {
            assert_eq!(found.severity, Severity::Hurts, "{found:?}");
            assert!(!found.change.is_empty());
        }
        assert_eq!(
            link(narrow, FULL).found,
            "0000:81:00.0 (mlx5_0) at 16.0 GT/s x8 of 16.0 GT/s x16"
        );
        assert_eq!(link(FULL, slow).severity, Severity::Note);
        let unknown = link(PciLink::default(), PciLink::default());
        assert_eq!((unknown.severity, &*unknown.found), (Severity::Fine, "not known here"));
    }

    #[test]
    fn a_network_device_of_another_node_hurts() {
        let at = |allowed| placement(&machine(allowed, FULL, FULL)).expect("it is known");
        assert_eq!((at("0-7").severity, at("5").severity), (Severity::Fine, Severity::Fine));
        let far = at("0-3");
        assert_eq!(far.severity, Severity::Hurts);
        assert!(far.change.contains("--cpunodebind=1"), "{far:?}");
        assert_eq!(placement(&MachineFacts::default()), None);
    }

    #[test]
    fn clocks_that_rise_late_are_noted() {
        let severity = |governor: &str, driver: &str| {
            let facts = MachineFacts {
                governors: vec![governor.into()],
                clock_driver: Some(driver.into()),
                ..MachineFacts::default()
            };
            clocks(&facts).severity
        };
        assert_eq!(severity("performance", "acpi-cpufreq"), Severity::Fine);
        assert_eq!(severity("powersave", "intel_pstate"), Severity::Fine);
        assert_eq!(severity("powersave", "acpi-cpufreq"), Severity::Note);
        assert_eq!(severity("ondemand", "acpi-cpufreq"), Severity::Note);
        assert_eq!(clocks(&MachineFacts::default()).severity, Severity::Fine);
    }

    #[test]
    fn a_topology_file_that_cannot_be_used_hurts() {
        let facts = |read| MachineFacts {
            topology_file: Some(("t.xml".into(), read)),
            ..MachineFacts::default()
        };
        let severity = |facts| topology_file(&facts).map(|it| it.severity);
        assert_eq!(severity(facts(Ok(()))), Some(Severity::Fine));
        assert_eq!(severity(facts(Err("no".into()))), Some(Severity::Hurts));
        assert_eq!(severity(MachineFacts::default()), None);
    }
}
