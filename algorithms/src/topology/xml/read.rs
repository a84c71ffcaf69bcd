//! Reads a topology file.

use std::collections::HashSet;

use roxmltree::{Document, Node, ParsingOptions};

use super::attributes::Element;
use super::dialect::of_another_program;
use super::{HIDDEN_TARGET, VERSION, XmlError};
use crate::topology::{
    BusId, ChipLink, CpuSet, Gpu, Machine, Network, NetworkAdapter, NetworkKind, NumaNode, NvLink,
    PciClass, PciDevice, PciIds, PciLink, Processor,
};

/// The longest file, in bytes. The file of a machine with eight GPUs has 10,000.
const MOST_BYTES: usize = 4 << 20;
/// The most nodes of the document: elements, attributes and the text between them.
const MOST_NODES: u32 = 1 << 17;
/// How deep PCI devices may be nested. Machines have up to six levels.
const MOST_DEPTH: usize = 64;
/// The most notes that are kept.
const MOST_NOTES: usize = 16;

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The machine.
    pub machine: Machine,
    /// What the file calls the machine.
    pub name: Option<String>,
    /// What was passed over, with its line; at most 16.
    pub notes: Vec<String>,
}

/// Reads a topology file of NCCL, version 1.
///
/// # Errors
/// It is no such file, or a value is not understood; the error names the line.
pub fn read(text: &str) -> Result<Reading, XmlError> {
    if text.len() > MOST_BYTES {
        return Err(XmlError::TooLong { bytes: text.len(), most: MOST_BYTES });
    }
    let options = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options);
    let document = document.map_err(|error| XmlError::NotXml { what: error.to_string() })?;
    let root = document.root_element();
    if let Some(dialect) = of_another_program(root) {
        return Err(XmlError::Dialect { dialect });
    }
    if root.tag_name().name() != "system" {
        return Err(XmlError::Dialect { dialect: "a file of an unknown kind" });
    }
    let found = root.attribute("version").unwrap_or("none");
    if found != VERSION {
        return Err(XmlError::Version { found: found.chars().take(40).collect() });
    }
    let mut reader = Reader::default();
    let mut machine = Machine::default();
    for node in elements(root) {
        match node.tag_name().name() {
            "cpu" => machine.nodes.push(reader.numa_node(Element { node, name: "cpu" })?),
            _ => reader.pass_over(node),
        }
    }
    let name = root.attribute("name").map(str::to_owned);
    Ok(Reading { machine, name, notes: reader.notes })
}

#[derive(Default)]
struct Reader {
    notes: Vec<String>,
    /// The addresses so far, with their hosts.
    seen: HashSet<(Option<u64>, BusId)>,
}

fn elements<'a, 'input: 'a>(node: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(Node::is_element)
}

impl Reader {
    fn note(&mut self, node: Node<'_, '_>, text: &str) {
        if self.notes.len() < MOST_NOTES {
            let line = node.document().text_pos_at(node.range().start).row;
            self.notes.push(format!("line {line}: {text}"));
        }
    }

    fn pass_over(&mut self, node: Node<'_, '_>) {
        let name: String = node.tag_name().name().chars().take(40).collect();
        self.note(node, &format!("<{name}> is not known here and is passed over"));
    }

    fn numa_node(&mut self, element: Element<'_, '_>) -> Result<NumaNode, XmlError> {
        element.required("numaid")?;
        let offset = element.number("affinity_offset")?.unwrap_or(0);
        let cpus = match element.get("affinity") {
            None => CpuSet::default(),
            Some(mask) => CpuSet::from_mask(mask, offset).ok_or_else(|| {
                element.bad("affinity", "a hexadecimal mask in groups of 32 bits, as ff,00000001")
            })?,
        };
        let text = |name| element.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
        let mut node = NumaNode {
            number: element.number("numaid")?,
            host: element.hexadecimal("host_hash")?,
            cpus,
            processor: Processor {
                architecture: text("arch"),
                vendor: text("vendor"),
                family: element.number("familyid")?,
                model: element.number("modelid")?,
            },
            ..NumaNode::default()
        };
        for child in elements(element.node) {
            match child.tag_name().name() {
                "pci" => {
                    let child = Element { node: child, name: "pci" };
                    node.devices.push(self.pci(child, node.host, 1)?);
                }
                "nic" => node.adapters.push(self.adapter(child)?),
                _ => self.pass_over(child),
            }
        }
        Ok(node)
    }

    fn pci(
        &mut self,
        element: Element<'_, '_>,
        host: Option<u64>,
        depth: usize,
    ) -> Result<PciDevice, XmlError> {
        if depth > MOST_DEPTH {
            return Err(XmlError::TooDeep { line: element.line(), most: MOST_DEPTH });
        }
        let bus: BusId = element
            .required("busid")?
            .parse()
            .map_err(|()| element.bad("busid", "a PCI address, as 0000:c1:00.0"))?;
        if !self.seen.insert((host, bus)) {
            return Err(XmlError::Twice { line: element.line(), bus: bus.to_string() });
        }
        let mut device = PciDevice::new(bus, PciClass::BRIDGE);
        device.ids = PciIds {
            vendor: element.id("vendor")?,
            device: element.id("device")?,
            subsystem_vendor: element.id("subsystem_vendor")?,
            subsystem_device: element.id("subsystem_device")?,
        };
        device.link = PciLink {
            speed: PciLink::parse_speed(element.get("link_speed").unwrap_or_default()),
            width: element
                .number("link_width")?
                .and_then(|it| PciLink::parse_width(&it.to_string())),
        };
        for child in elements(element.node) {
            match child.tag_name().name() {
                "pci" => {
                    let child = Element { node: child, name: "pci" };
                    device.children.push(self.pci(child, host, depth + 1)?);
                }
                "gpu" => device.gpus.push(self.gpu(Element { node: child, name: "gpu" })?),
                "nic" => {
                    let networks = self.adapter(child)?.networks;
                    device.adapter.get_or_insert_default().networks.extend(networks);
                }
                "pcilink" => {
                    let child = Element { node: child, name: "pcilink" };
                    let form = "a PCI address, as 0000:c1:00.0";
                    let peer = child.required("target")?.parse();
                    device.peers.push(peer.map_err(|()| child.bad("target", form))?);
                }
                _ => self.pass_over(child),
            }
        }
        device.class = match element.get("class").filter(|class| !class.is_empty()) {
            Some(class) => PciClass::parse(class)
                .ok_or_else(|| element.bad("class", "a PCI class, as 0x030200 or 0x03"))?,
            None if !device.gpus.is_empty() => PciClass::GPU,
            None if device.adapter.is_some() => PciClass::NETWORK,
            None => PciClass::BRIDGE,
        };
        Ok(device)
    }

    fn gpu(&mut self, element: Element<'_, '_>) -> Result<Gpu, XmlError> {
        let mut gpu = Gpu {
            dev: element.number("dev")?,
            sm: element.number("sm")?,
            rank: element.number("rank")?,
            gdr: element.flag("gdr")?,
            partition: element.number("mlopart")?,
            ..Gpu::default()
        };
        for child in elements(element.node) {
            match child.tag_name().name() {
                "nvlink" => gpu.nvlinks.push(nvlink(Element { node: child, name: "nvlink" })?),
                "c2c" => {
                    let child = Element { node: child, name: "c2c" };
                    child.required("bw")?;
                    child.required("count")?;
                    let number = |name| Ok(child.number(name)?.unwrap_or(0));
                    gpu.c2c = Some(ChipLink { bandwidth: number("bw")?, count: number("count")? });
                }
                _ => self.pass_over(child),
            }
        }
        Ok(gpu)
    }

    fn adapter(&mut self, node: Node<'_, '_>) -> Result<NetworkAdapter, XmlError> {
        let mut networks = Vec::new();
        for child in elements(node) {
            let kind = match child.tag_name().name() {
                "net" => NetworkKind::Net,
                "gin" => NetworkKind::Gin,
                "rma" => NetworkKind::Rma,
                _ => {
                    self.pass_over(child);
                    continue;
                }
            };
            let network = network(Element { node: child, name: kind.element() }, kind)?;
            if network.dev.is_none() {
                self.note(child, "a network device without dev is not used");
            }
            networks.push(network);
        }
        Ok(NetworkAdapter { networks })
    }
}

fn nvlink(element: Element<'_, '_>) -> Result<NvLink, XmlError> {
    let target = match element.required("target")? {
        HIDDEN_TARGET => None,
        target => Some(target.parse().map_err(|()| {
            element.bad("target", "a PCI address, or fffffff:ffff:ff for one that is not visible")
        })?),
    };
    element.required("count")?;
    let class = match element.get("tclass").filter(|class| !class.is_empty()) {
        None => None,
        Some(class) => Some(
            PciClass::parse(class)
                .ok_or_else(|| element.bad("tclass", "a PCI class, as 0x068000"))?,
        ),
    };
    Ok(NvLink { target, count: element.number("count")?.unwrap_or(0), class })
}

fn network(element: Element<'_, '_>, kind: NetworkKind) -> Result<Network, XmlError> {
    Ok(Network {
        kind,
        name: element.get("name").unwrap_or_default().to_owned(),
        dev: element.number("dev")?,
        speed: element.number("speed")?.filter(|speed| *speed > 0),
        latency: element.microseconds("latency")?,
        port: element.number("port")?,
        guid: element.hexadecimal("guid")?,
        max_connections: element.number("maxconn")?,
        gdr: element.flag("gdr")?,
        rail: element.number("rail")?,
        plane: element.number("plane")?,
        coll: element.flag("coll")?,
        gin: element.flag("gin")?,
        rma: element.flag("rma")?,
        net: element.flag("net")?,
        keep: element.flag("keep")?,
    })
}
