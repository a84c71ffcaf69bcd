//! Files: what is written is read again, what NCCL wrote is understood, what is no file of NCCL's
//! is refused, and damaged files do no harm.

use super::*;
use crate::topology::examples::{self, bus};
use crate::topology::{
    BusId, ChipLink, CpuSet, Gpu, Machine, Network, NetworkAdapter, NetworkKind, NumaNode, NvLink,
    PciClass, PciDevice, PciIds, PciKind, PciLink, Processor,
};

/// Part of what NCCL 2.30 writes on a machine with two GPUs, one of them without a rank.
const FROM_NCCL: &str = r#"<!-- a comment -->
<system version="1">
  <cpu host_hash="0x7abf3a4e5c21" numaid="0" affinity="0000ffff,00000000,0000ffff" arch="x86_64"
      vendor="AuthenticAMD" familyid="25" modelid="17">
    <pci busid="0000:16:00.0" class="0x060400" vendor="0x1000" device="0xc030"
        subsystem_vendor="0x1000" subsystem_device="0x100b" link_speed="32.0 GT/s PCIe"
        link_width="16">
      <pci busid="0000:18:00.0" class="0x030200" vendor="0x10de" device="0x2330"
          subsystem_vendor="0x10de" subsystem_device="0x16c1" link_speed="32.0 GT/s PCIe"
          link_width="16">
        <gpu dev="0" sm="90" rank="0" gdr="1" mlopart="-1">
          <nvlink target="0000:07:00.0" count="18" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:1a:00.0" class="0x020700" link_speed="16 GT/s" link_width="16">
        <nic>
          <net name="mlx5_0" dev="0" latency="0.000000" speed="400000" port="1"
              guid="0x98039b0300c1" maxconn="131072" gdr="1" rail="65536" plane="65536" net="1"/>
          <gin name="mlx5_0" dev="0" speed="400000" port="1" guid="0x98039b0300c1"/>
        </nic>
      </pci>
      <pcilink target="0000:96:00.0"/>
    </pci>
  </cpu>
  <cpu numaid="-1" affinity="f" affinity_offset="64" arch="arm64">
    <pci busid="0009:01:00.0" class="0x03" link_speed="" link_width="">
      <gpu dev="1" sm="90">
        <nvlink target="fffffff:ffff:ff" count="2" tclass="0x068000"/>
        <c2c bw="44712" count="10"/>
      </gpu>
    </pci>
    <nic>
      <net name="eth0" dev="1" speed="-1"/>
    </nic>
  </cpu>
</system>
"#;

#[test]
fn what_nccl_wrote_is_understood() {
    let Reading { machine, name, notes } = read(FROM_NCCL).unwrap();
    assert_eq!((name, notes), (None, Vec::<String>::new()));
    let [first, second] = &machine.nodes[..] else { panic!("{machine:?}") };
    assert_eq!((first.number, first.host), (Some(0), Some(0x7abf_3a4e_5c21)));
    assert_eq!(first.cpus, CpuSet::from_list("0-15,64-79").unwrap());
    let switch = &first.devices[0];
    assert_eq!((switch.link.bandwidth(), switch.class.kind()), (48.0, PciKind::Bridge));
    assert_eq!(switch.peers, [bus("0000:96:00.0")]);
    assert_eq!(switch.children[0].ids.subsystem_device, Some(0x16c1));
    let gpu = &switch.children[0].gpus[0];
    assert_eq!((gpu.rank, gpu.gdr, gpu.partition), (Some(0), Some(true), None));
    let networks = &switch.children[1].adapter.as_ref().unwrap().networks;
    assert_eq!((networks[0].rail, networks[0].guid), (Some(65_536), Some(0x9803_9b03_00c1)));
    assert_eq!((networks[0].latency, networks[0].is_usable()), (Some(0.0), true));
    assert_eq!((networks[1].kind, networks[1].is_usable()), (NetworkKind::Gin, false));
    assert_eq!(switch.children[1].link.bandwidth(), 24.0);
    // A virtual machine: no NUMA, no link speeds, an NVLink to what is not visible.
    assert_eq!((second.number, second.cpus.to_string().as_str()), (None, "64-67"));
    assert_eq!(second.devices[0].class.kind(), PciKind::Gpu);
    assert_eq!(second.devices[0].link, PciLink::default());
    assert_eq!(second.devices[0].gpus[0].nvlinks[0].target, None);
    assert_eq!(second.devices[0].gpus[0].c2c, Some(ChipLink { bandwidth: 44_712, count: 10 }));
    let ethernet = &second.adapters[0].networks[0];
    assert_eq!((ethernet.speed, ethernet.bandwidth()), (None, 1.25));
    // What was read is written and read again.
    let again = read(&write(&machine)).unwrap();
    assert_eq!(again.machine, machine);
}

#[test]
fn a_machine_is_written_for_nccls_reader_and_read_again() {
    for machine in [
        examples::dgx(),
        examples::one_switch(2, 4),
        examples::on_processor(),
        examples::nvlink_chain(),
        Machine::default(),
    ] {
        let text = write(&machine);
        assert_eq!(read(&text).unwrap().machine, machine);
        let tags = text.lines().filter(|line| !line.trim_start().starts_with("</")).count();
        assert_eq!(element_count(&machine), tags);
        for line in text.lines() {
            // One element on each line, single blanks between attributes, and no declaration.
            let element = line.trim_start();
            assert!(element.starts_with('<') && element.ends_with('>'), "{line}");
            assert!(!element.starts_with("<?") && !element.contains("  "), "{line}");
        }
    }
    assert!(element_count(&examples::dgx()) < MOST_ELEMENTS);
}

#[test]
fn files_of_other_programs_are_refused_by_name() {
    for (text, name) in [
        (r#"<system version="2"><cpu numaid="0"/></system>"#, "RCCL"),
        (
            r#"<system version="1"><cpu numaid="0"><pci busid="0000:01:00.0"><gpu dev="0" sm="94"
               gcn="942"><xgmi target="0000:02:00.0" count="1"/></gpu></pci></cpu></system>"#,
            "RCCL",
        ),
        (r#"<graphs version="1"/>"#, "NCCL's graph file"),
        (r#"<topology version="2.0"><object type="Machine"/></topology>"#, "hwloc"),
        (r#"<algo name="x" nchannels="1"/>"#, "MSCCL"),
        (r#"<nvidia_smi_log/>"#, "nvidia-smi"),
        (r#"<html/>"#, "unknown kind"),
    ] {
        let error = read(text).unwrap_err();
        assert!(matches!(error, XmlError::Dialect { .. }), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let version = |text| read(text).unwrap_err().to_string();
    assert!(version("<system/>").contains("version none"));
    assert!(version(r#"<system version="3"/>"#).contains("version 3"));
}

#[test]
fn values_that_are_not_understood_are_named_with_their_line() {
    let pci =
        |inner: &str| format!("<system version=\"1\">\n<cpu numaid=\"0\">\n{inner}</cpu></system>");
    for (text, expected) in [
        ("<system version=\"1\"><cpu/></system>".to_owned(), "<cpu> has no attribute numaid"),
        (
            "<system version=\"1\">\n<cpu numaid=\"0\" affinity=\"0-63\"/></system>".to_owned(),
            "line 2: affinity=\"0-63\" of <cpu> is not understood; expected: a hexadecimal mask",
        ),
        (pci("<pci/>"), "line 3: <pci> has no attribute busid"),
        (pci("<pci busid=\"18:00.0\"/>"), "busid=\"18:00.0\" of <pci>"),
        (pci("<pci busid=\"0000:18:00.0\" class=\"gpu\"/>"), "class=\"gpu\""),
        (pci("<pci busid=\"0000:18:00.0\" vendor=\"0x12345\"/>"), "16 bits"),
        (pci("<pci busid=\"0000:18:00.0\" link_width=\"x16\"/>"), "link_width=\"x16\""),
        (
            pci("<pci busid=\"0000:18:00.0\"/><pci busid=\"0000:18:00.0\"/>"),
            "two PCI devices 0000:18:00.0",
        ),
        (
            pci("<pci busid=\"0000:18:00.0\"><gpu><nvlink target=\"x\" count=\"1\"/></gpu></pci>"),
            "fffffff:ffff:ff",
        ),
        (pci("<pci busid=\"0000:18:00.0\"><gpu><c2c count=\"1\"/></gpu></pci>"), "attribute bw"),
        (pci("<nic><net latency=\"soon\"/></nic>"), "microseconds"),
        (pci("<nic><net guid=\"+1\"/></nic>"), "hexadecimal"),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn unknown_elements_are_passed_over_with_a_note() {
    let text = r#"<system version="1" name="box"><cpu numaid="0">
      <pci busid="0000:18:00.0"><gpu dev="0"><mystery/></gpu></pci>
      <nic><net name="a"/></nic></cpu><rack/></system>"#;
    let Reading { machine, name, notes } = read(text).unwrap();
    assert_eq!((name.as_deref(), machine.nodes.len()), (Some("box"), 1));
    assert_eq!(machine.nodes[0].devices[0].class, PciClass::GPU);
    let notes = notes.join("\n");
    assert!(notes.contains("line 2: <mystery>") && notes.contains("<rack>"), "{notes}");
    assert!(notes.contains("without dev"), "{notes}");
}

#[test]
fn there_are_limits_on_length_and_depth() {
    let error = read(&" ".repeat(5 << 20)).unwrap_err();
    assert!(matches!(error, XmlError::TooLong { .. }), "{error}");
    let nested = |depth: usize| {
        let mut text = String::from("<system version=\"1\"><cpu numaid=\"0\">");
        for number in 0..depth {
            text += &format!("<pci busid=\"{number:04x}:00:00.0\">");
        }
        text + &"</pci>".repeat(depth) + "</cpu></system>"
    };
    assert!(read(&nested(64)).is_ok());
    assert!(matches!(read(&nested(65)), Err(XmlError::TooDeep { line: 1, most: 64 })));
    assert!(read(&nested(5000)).is_err());
    let wide = format!("<system version=\"1\">{}</system>", "<x/>".repeat(1 << 18));
    assert!(matches!(read(&wide), Err(XmlError::NotXml { .. })));
    let entities = "<!DOCTYPE s [<!ENTITY a \"aaaa\">]><system version=\"1\">&a;</system>";
    assert!(matches!(read(entities), Err(XmlError::NotXml { .. })));
    for text in ["", "nccl", "<system version=\"1\">", "\u{0}"] {
        assert!(matches!(read(text), Err(XmlError::NotXml { .. })), "{text}");
    }
}

/// A generator of machines and damage: xorshift, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(3) > 0).then(|| value(self))
    }

    fn number(&mut self) -> u32 {
        self.below(1 << 20) as u32
    }

    fn many<T>(&mut self, most: u64, value: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| value(self)).collect()
    }

    fn network(&mut self) -> Network {
        let names = ["mlx5_0", "eth0", "a&b", "<\">'", "ü", ""];
        Network {
            kind: [NetworkKind::Net, NetworkKind::Gin, NetworkKind::Rma][self.below(3) as usize],
            name: names[self.below(6) as usize].to_owned(),
            dev: self.maybe(Self::number),
            speed: self.maybe(|it| 1 + it.number()),
            latency: self.maybe(|it| f64::from(it.number()) / 1000.0),
            port: self.maybe(Self::number),
            guid: self.maybe(|it| it.below(u64::MAX)),
            max_connections: self.maybe(Self::number),
            gdr: self.maybe(|it| it.below(2) == 1),
            rail: self.maybe(Self::number),
            plane: self.maybe(Self::number),
            coll: self.maybe(|it| it.below(2) == 1),
            gin: self.maybe(|it| it.below(2) == 1),
            rma: self.maybe(|it| it.below(2) == 1),
            net: self.maybe(|it| it.below(2) == 1),
            keep: self.maybe(|it| it.below(2) == 1),
        }
    }

    fn adapter(&mut self) -> NetworkAdapter {
        NetworkAdapter { networks: self.many(3, Self::network) }
    }

    fn gpu(&mut self, addresses: u32) -> Gpu {
        let address = |number| BusId { domain: number, bus: 1, device: 2, function: 3 };
        Gpu {
            dev: self.maybe(Self::number),
            sm: self.maybe(|it| [60, 70, 86, 90, 100, 107][it.below(6) as usize]),
            rank: self.maybe(Self::number),
            gdr: self.maybe(|it| it.below(2) == 1),
            partition: self.maybe(|it| it.below(2) as u32),
            nvlinks: self.many(3, |it| NvLink {
                target: it.maybe(|it| address(it.below(u64::from(addresses) + 1) as u32)),
                count: it.below(19) as u32,
                class: it.maybe(|it| {
                    [PciClass::GPU, PciClass::NV_SWITCH, PciClass(0x06_8001)][it.below(3) as usize]
                }),
            }),
            c2c: self.maybe(|it| ChipLink { bandwidth: it.number(), count: it.number() }),
        }
    }

    fn device(&mut self, addresses: &mut u32, depth: u64) -> PciDevice {
        *addresses += 1;
        let bus = BusId { domain: *addresses, bus: 1, device: 2, function: 3 };
        let mut device = PciDevice::new(bus, PciClass(self.below(1 << 24) as u32));
        device.ids = PciIds {
            vendor: self.maybe(|it| it.number() as u16),
            device: self.maybe(|it| it.number() as u16),
            subsystem_vendor: self.maybe(|it| it.number() as u16),
            subsystem_device: self.maybe(|it| it.number() as u16),
        };
        device.link = PciLink {
            speed: self.maybe(|it| 1 + it.below(9999) as u32),
            width: self.maybe(|it| 1 + it.below(32) as u32),
        };
        let known = *addresses;
        device.gpus = self.many(2, |it| it.gpu(known));
        device.adapter = self.maybe(Self::adapter);
        device.peers = self.many(2, |_| bus);
        for _ in 0..self.below(1 + depth) {
            device.children.push(self.device(addresses, depth - 1));
        }
        device
    }

    fn machine(&mut self) -> Machine {
        let mut addresses = 0;
        let nodes = (0..self.below(4)).map(|_| NumaNode {
            number: self.maybe(Self::number),
            host: self.maybe(|it| it.below(3)),
            cpus: self.many(9, |it| it.below(300) as u32).into_iter().collect(),
            processor: Processor {
                architecture: self.maybe(|_| "x86_64".to_owned()),
                vendor: self.maybe(|_| "  Shanghai  ".to_owned()),
                family: self.maybe(Self::number),
                model: self.maybe(Self::number),
            },
            devices: (0..self.below(3)).map(|_| self.device(&mut addresses, 3)).collect(),
            adapters: self.many(2, Self::adapter),
        });
        Machine { nodes: nodes.collect(), cpus: Vec::new() }
    }
}

#[test]
fn random_machines_are_written_and_read_again() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..300 {
        let machine = random.machine();
        let text = write(&machine);
        let again = read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(again.machine, machine, "{text}");
    }
}

/// Distances, choices, lists and pictures of any machine can be made, and a damaged file is read
/// or refused.
#[test]
fn random_machines_and_damaged_files_do_no_harm() {
    use crate::topology::{Distances, GpuDirectSettings, NetworkChoice, PathKind, draw, list};
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..150 {
        let machine = random.machine();
        let distances = Distances::new(&machine, GpuDirectSettings::default());
        let choice = NetworkChoice::new(&distances, machine.nodes.len());
        for devices in choice.by_gpu.iter().chain(&choice.by_node) {
            assert!(devices.iter().all(|index| *index < distances.networks.len()));
        }
        for gpu in 0..distances.gpus.len() {
            assert_eq!(
                choice.by_gpu[gpu].is_empty(),
                distances.networks.is_empty() || {
                    let paths =
                        (0..distances.networks.len()).map(|n| distances.gpu_to_network(gpu, n));
                    paths.into_iter().all(|path| path.kind == PathKind::Dis)
                }
            );
        }
        assert!(!list(&machine, &distances, &choice).is_empty());
        assert!(
            read(&draw(&machine)).is_err_and(|error| matches!(error, XmlError::Dialect { .. }))
        );
        let mut bytes = write(&machine).into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = random.below(256) as u8,
                _ => drop(bytes.remove(at)),
            }
            bytes.extend_from_slice(b" ");
        }
        if let Ok(reading) = read(&String::from_utf8_lossy(&bytes)) {
            let _ = Distances::new(&reading.machine, GpuDirectSettings::default());
        }
    }
}
