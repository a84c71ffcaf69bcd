//! Machines as folders of files, as the kernel shows them, and this machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use maypole_algorithms::topology::{
    Distances, GpuDirectSettings, NetworkChoice, PathKind, PciKind, RankGroups, SharedPart,
};

use super::*;

/// A folder with the files of a machine.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, format!("{text}\n")).expect("a file");
    }

    fn files(&self, folder: &str, files: &[(&str, &str)]) {
        files.iter().for_each(|(name, text)| self.file(&format!("{folder}/{name}"), text));
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        symlink(self.root().join(target), path).expect("a link");
    }

    /// Processors: by node its list, with sockets of one node each and caches of two processors.
    fn processors(&self, nodes: &[&str]) {
        self.file(
            "proc/cpuinfo",
            "processor : 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143",
        );
        let mut all = Vec::new();
        for (node, list) in nodes.iter().enumerate() {
            self.file(&format!("sys/devices/system/node/node{node}/cpulist"), list);
            for cpu in CpuSet::from_list(list).expect("a list").iter() {
                let (number, folder) = (cpu, format!("sys/devices/system/cpu/cpu{cpu}"));
                let pair = format!("{}-{}", number / 2 * 2, number / 2 * 2 + 1);
                self.files(
                    &folder,
                    &[
                        ("topology/physical_package_id", &node.to_string()),
                        ("topology/core_id", &number.to_string()),
                        ("cache/index0/level", "1"),
                        ("cache/index0/shared_cpu_list", &number.to_string()),
                        ("cache/index3/level", "3"),
                        ("cache/index3/shared_cpu_list", &pair),
                    ],
                );
                all.push(cpu.to_string());
            }
        }
        self.file("sys/devices/system/cpu/online", &all.join(","));
    }

    /// A PCI device; `path` begins at the root bus. Returns its folder.
    fn pci(&self, path: &str, class: &str, vendor: &str, node: i32) -> String {
        let folder = format!("sys/devices/{path}");
        self.files(
            &folder,
            &[
                ("class", class),
                ("vendor", vendor),
                ("device", "0x1234"),
                ("subsystem_vendor", vendor),
                ("subsystem_device", "0x0001"),
                ("numa_node", &node.to_string()),
                ("max_link_speed", "32.0 GT/s PCIe"),
                ("max_link_width", "16"),
                ("current_link_speed", "32.0 GT/s PCIe"),
                ("current_link_width", "16"),
            ],
        );
        let name = path.rsplit('/').next().expect("a name");
        self.link(&format!("sys/bus/pci/devices/{name}"), &folder);
        folder
    }

    fn gpu(&self, path: &str, node: i32) -> String {
        self.pci(path, "0x030200", "0x10de", node)
    }

    /// An RDMA adapter with one port, and its interface.
    fn adapter(&self, path: &str, number: u32, node: i32) -> String {
        let folder = self.pci(path, "0x020700", "0x15b3", node);
        let device = format!("{folder}/infiniband/mlx5_{number}");
        self.files(
            &device,
            &[
                ("node_guid", &format!("9803:9b03:00c1:00{number:02x}")),
                ("ports/1/rate", "400 Gb/sec (4X NDR)"),
                ("ports/1/link_layer", "InfiniBand"),
                ("ports/1/state", "4: ACTIVE"),
            ],
        );
        self.link(&format!("{device}/device"), &folder);
        self.link(&format!("sys/class/infiniband/mlx5_{number}"), &device);
        self.interface(&format!("ib{number}"), Some(&folder), "up", "32");
        folder
    }

    fn interface(&self, name: &str, pci: Option<&str>, state: &str, kind: &str) {
        let above = pci.unwrap_or("sys/devices/virtual");
        let folder = format!("{above}/net/{name}");
        self.files(&folder, &[("operstate", state), ("type", kind), ("speed", "100000")]);
        if let Some(pci) = pci {
            self.link(&format!("{folder}/device"), pci);
        }
        self.link(&format!("sys/class/net/{name}"), &folder);
    }

    /// Eight GPUs and eight adapters on two sockets: below each of four root ports a switch, and
    /// below each of its downstream ports two GPUs or adapters of the same number.
    fn dgx(&self) {
        self.processors(&["0-3", "4-7"]);
        self.file("sys/module/nvidia_peermem/version", "550.54");
        for switch in 0..4 {
            let node = switch / 2;
            let bus = |offset: i32| 0x10 + 0x20 * switch + offset;
            let root = format!("pci0000:{:02x}/0000:{:02x}:01.0", bus(0), bus(0));
            let upstream = format!("{root}/0000:{:02x}:00.0", bus(1));
            self.pci(&root, "0x060400", "0x8086", node);
            self.pci(&upstream, "0x060400", "0x1000", node);
            for port in 0..2 {
                let number = 2 * switch + port;
                // Each pair is behind a further switch.
                let downstream = format!("{upstream}/0000:{:02x}:{port:02x}.0", bus(2));
                let inner = format!("{downstream}/0000:{:02x}:00.0", bus(3 + 8 * port));
                self.pci(&downstream, "0x060400", "0x1000", node);
                self.pci(&inner, "0x060400", "0x1000", node);
                for (offset, is_gpu) in [(0, true), (1, false)] {
                    let end = format!("{inner}/0000:{:02x}:{offset:02x}.0", bus(4 + 8 * port));
                    self.pci(&end, "0x060400", "0x1000", node);
                    let device = format!("{end}/0000:{:02x}:00.0", bus(5 + 8 * port + offset));
                    if is_gpu {
                        self.gpu(&device, node);
                    } else {
                        self.adapter(&device, number as u32, node);
                    }
                }
            }
        }
        self.interface("lo", None, "unknown", "772");
        self.interface("docker0", None, "up", "1");
    }
}

#[test]
fn a_machine_with_eight_gpus_and_adapters_is_read() {
    let tree = Tree::new();
    tree.dgx();
    let Inventory { machine, links, .. } = read(tree.root());
    assert_eq!(
        machine.nodes.iter().map(|node| node.number).collect::<Vec<_>>(),
        [Some(0), Some(1)]
    );
    assert_eq!(machine.nodes[1].cpus, CpuSet::from_list("4-7").unwrap());
    assert_eq!(machine.nodes[0].processor.vendor.as_deref(), Some("GenuineIntel"));
    assert_eq!((machine.sockets().len(), machine.cores(), machine.l3_groups().len()), (2, 8, 4));
    // Root ports and downstream ports are left out, as in NCCL's files.
    assert_eq!(machine.nodes[0].devices.len(), 2);
    let switch = &machine.nodes[0].devices[0];
    assert_eq!((switch.bus.to_string().as_str(), switch.children.len()), ("0000:11:00.0", 2));
    assert_eq!((switch.class.kind(), switch.children[0].children.len()), (PciKind::Bridge, 2));
    assert_eq!(machine.pci_devices().len(), 4 * (1 + 2 * 3));
    assert_eq!(links.len(), machine.pci_devices().len());
    // Each GPU uses the adapter beside it, as in NCCL. Interfaces of these adapters and those that
    // are no hardware are not taken.
    let distances = Distances::new(&machine, GpuDirectSettings::default());
    assert_eq!((distances.gpus.len(), distances.networks.len()), (8, 8));
    assert_eq!(distances.gpu_to_network(5, 5).kind, PathKind::Phb, "without knowledge of the GPU");
    let mut known = machine.clone();
    for_each_gpu(&mut known, &mut |gpu| gpu.gdr = Some(true));
    let distances = Distances::new(&known, GpuDirectSettings::default());
    let choice = NetworkChoice::new(&distances, 2);
    let names = choice.by_gpu.iter().map(|devices| &*distances.networks[devices[0]].name);
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5", "mlx5_6", "mlx5_7"]
    );
    assert!(choice.by_gpu.iter().all(|devices| devices.len() == 1));
    assert_eq!(distances.gpu_to_network(5, 5).kind, PathKind::Pix);
    assert_eq!(distances.gpu_to_network(5, 4).kind, PathKind::Pxb);
    assert_eq!(choice.by_node, [[0, 1, 2, 3], [4, 5, 6, 7]]);
    // The file has all but the single processors.
    let path = tree.root().join("topology.xml");
    write_file(&path, &machine).unwrap();
    let again = read_file(&path).unwrap();
    assert_eq!((again.machine.nodes, again.notes), (machine.nodes, vec![]));
}

fn for_each_gpu(
    machine: &mut Machine,
    change: &mut dyn FnMut(&mut maypole_algorithms::topology::Gpu),
) {
    fn visit(
        devices: &mut [maypole_algorithms::topology::PciDevice],
        change: &mut dyn FnMut(&mut maypole_algorithms::topology::Gpu),
    ) {
        for device in devices {
            device.gpus.iter_mut().for_each(&mut *change);
            visit(&mut device.children, change);
        }
    }
    machine.nodes.iter_mut().for_each(|node| visit(&mut node.devices, change));
}

#[test]
fn links_have_the_lower_ability_of_their_ends_and_a_present_state() {
    let tree = Tree::new();
    tree.processors(&["0-1"]);
    let root = "pci0000:00/0000:00:01.0";
    let folder = tree.pci(root, "0x060400", "0x8086", -1);
    tree.file(&format!("{folder}/max_link_speed"), "16.0 GT/s PCIe");
    let folder = tree.adapter(&format!("{root}/0000:01:00.0"), 0, -1);
    tree.file(&format!("{folder}/current_link_width"), "8");
    let Inventory { machine, links, .. } = read(tree.root());
    let [LinkState { bus, current, most }] = links[..] else { panic!("{links:?}") };
    assert_eq!(bus.to_string(), "0000:01:00.0");
    assert_eq!(
        (current.to_string(), most.to_string()),
        ("32.0 GT/s x8".into(), "16.0 GT/s x16".into())
    );
    // A device without a NUMA node belongs to the only one.
    assert_eq!(machine.nodes.len(), 1);
    assert_eq!(machine.nodes[0].devices[0].link, most);
}

#[test]
fn a_device_without_a_node_on_a_machine_with_several_gets_one_without_a_number() {
    let tree = Tree::new();
    tree.processors(&["0-1", "2-3"]);
    tree.gpu("pci0000:00/0000:00:01.0", -1);
    tree.file("sys/devices/system/node/node2/cpulist", "");
    let machine = read(tree.root()).machine;
    let numbers: Vec<_> = machine.nodes.iter().map(|node| node.number).collect();
    assert_eq!(numbers, [Some(0), Some(1), None]);
    assert_eq!(machine.nodes[2].devices.len(), 1);
}

#[test]
fn interfaces_of_virtual_machines_and_containers_are_taken() {
    // Virtio: the interface is two levels below the PCI device, whose link is unknown.
    let tree = Tree::new();
    let device = tree.pci("pci0000:00/0000:00:03.0", "0x020000", "0x1af4", -1);
    for name in ["max_link_speed", "max_link_width", "current_link_speed", "current_link_width"] {
        fs::remove_file(tree.root().join(&device).join(name)).unwrap();
    }
    tree.files(
        &format!("{device}/virtio2/net/eth0"),
        &[("operstate", "up"), ("type", "1"), ("speed", "-1")],
    );
    tree.link(&format!("{device}/virtio2/net/eth0/device"), &format!("{device}/virtio2"));
    tree.link("sys/class/net/eth0", &format!("{device}/virtio2/net/eth0"));
    let machine = read(tree.root()).machine;
    let device = &machine.nodes[0].devices[0];
    assert_eq!((device.link.speed, device.link.width), (None, None));
    let eth0 = &device.adapter.as_ref().unwrap().networks[0];
    assert_eq!((eth0.name.as_str(), eth0.dev, eth0.speed), ("eth0", Some(0), None));

    // A container: the interface is no hardware. One that is down is left out.
    let tree = Tree::new();
    tree.interface("lo", None, "unknown", "772");
    tree.interface("eth0", None, "up", "1");
    tree.interface("eth1", None, "down", "1");
    let machine = read(tree.root()).machine;
    let names = machine.nodes[0].adapters.iter().map(|adapter| &*adapter.networks[0].name);
    assert_eq!(names.collect::<Vec<_>>(), ["eth0"]);
}

#[test]
fn a_port_that_is_down_is_listed_and_not_used() {
    let tree = Tree::new();
    tree.processors(&["0-1"]);
    let folder = tree.adapter("pci0000:00/0000:00:01.0", 3, 0);
    tree.file(&format!("{folder}/infiniband/mlx5_3/ports/1/state"), "1: DOWN");
    let machine = read(tree.root()).machine;
    let network = &machine.nodes[0].devices[0].adapter.as_ref().unwrap().networks[0];
    assert_eq!(
        (network.dev, network.speed, network.guid),
        (None, Some(400_000), Some(0x9803_9b03_00c1_0003))
    );
    assert!(Distances::new(&machine, GpuDirectSettings::default()).networks.is_empty());
}

#[test]
fn without_the_kernels_files_a_machine_is_one_node() {
    let tree = Tree::new();
    let Inventory { machine, links, allowed } = read(tree.root());
    assert_eq!((machine.nodes.len(), machine.nodes[0].number), (1, None));
    assert_eq!(machine.nodes[0].cpus, allowed);
    assert!(machine.cpus.is_empty() && links.is_empty() && !allowed.is_empty());
    // Nor does nonsense do harm.
    tree.file("sys/devices/system/node/node0/cpulist", "all of them");
    tree.file("sys/devices/system/cpu/online", "0-99999999");
    tree.file("sys/devices/system/cpu/cpu0/topology/core_id", "-1");
    tree.file("sys/bus/pci/devices/0000:00:00.0/class", "0xzz");
    tree.file("sys/class/net/eth0/operstate", "up");
    tree.link("sys/class/infiniband/mlx5_0", "nowhere");
    assert!(!read(tree.root()).allowed.is_empty());
}

#[test]
fn bound_ranks_are_grouped_by_what_the_machine_says() {
    let tree = Tree::new();
    tree.processors(&["0-3", "4-7"]);
    let machine = read(tree.root()).machine;
    let ranks = ["0", "2", "5", "7"].map(|list| CpuSet::from_list(list).unwrap());
    let groups = |part| RankGroups::new(&machine, &ranks, part).map(|it| it.groups);
    assert_eq!(groups(SharedPart::NumaNode), Some(vec![0, 0, 1, 1]));
    assert_eq!(groups(SharedPart::Socket), Some(vec![0, 0, 1, 1]));
    assert_eq!(groups(SharedPart::L3), Some(vec![0, 1, 2, 3]));
}

#[test]
fn this_machine_is_read_and_written_and_read_again() {
    let Inventory { machine, links, allowed } = read(Path::new("/"));
    assert!(!machine.nodes.is_empty() && !allowed.is_empty());
    assert_eq!(links.len(), machine.pci_devices().len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("topology.xml");
    write_file(&path, &machine).unwrap();
    assert_eq!(read_file(&path).unwrap().machine.nodes, machine.nodes);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hwloc.xml");
    fs::write(&path, "<topology version=\"2.0\"/>").unwrap();
    let error = read_file(&path).unwrap_err().to_string();
    assert!(error.contains("hwloc.xml") && error.contains("lstopo"), "{error}");
    let error = read_file(folder.path()).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    // A pipe without a reader or a writer is refused, and nothing waits for one.
    let pipe = folder.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(read_file(&pipe), Err(FileError::Io { .. })));
    assert!(matches!(write_file(&pipe, &Machine::default()), Err(FileError::Io { .. })));
    let error = write_file(folder.path(), &Machine::default()).unwrap_err();
    assert!(matches!(error, FileError::Io { .. }), "{error}");
    fs::write(&path, " ".repeat(5 << 20)).unwrap();
    assert!(matches!(read_file(&path), Err(FileError::Format { .. })));
}
