//! A machine as a picture (SVG): boxes in boxes, from the NUMA nodes down to GPUs and network
//! devices. The colour of a box says what it is, and its second line how fast its link is.

use std::fmt::Write as _;

use super::devices::PciDevice;
use super::listing::{device_name, gpu_name, link_name, network_name, node_name};
use super::machine::{Machine, NumaNode};
use super::pci::PciKind;
use crate::markup::escape;

const FONT: &str = "font-family=\"Helvetica, Arial, sans-serif\"";
/// Sizes in pixels; the width of a bold letter as a fraction of the size of the text.
const TEXT: f64 = 11.0;
const LETTER: f64 = 0.64;
const LINE: f64 = 15.0;
const MARGIN: f64 = 8.0;

/// The fill and the edge of each kind of box; they differ in lightness too.
const NODE: (&str, &str) = ("#f4f6f8", "#555555");
const BRIDGE: (&str, &str) = ("#e3e9ef", "#7a8794");
const GPU: (&str, &str) = ("#d3ebd9", "#2f7d4a");
const NETWORK: (&str, &str) = ("#fbe3c0", "#b8741a");

/// A box with its lines of text, and the boxes in it.
struct Area {
    lines: Vec<String>,
    colours: (&'static str, &'static str),
    inner: Vec<Self>,
    width: f64,
    height: f64,
}

impl Area {
    fn new(lines: Vec<String>, colours: (&'static str, &'static str), inner: Vec<Self>) -> Self {
        let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let text = longest as f64 * TEXT * LETTER;
        let gaps = inner.len().saturating_sub(1) as f64 * MARGIN;
        let content = inner.iter().map(|area| area.width).sum::<f64>() + gaps;
        let highest = inner.iter().map(|area| area.height).fold(0.0, f64::max);
        let below = if inner.is_empty() { 0.0 } else { highest + MARGIN };
        Self {
            width: text.max(content) + 2.0 * MARGIN,
            height: lines.len() as f64 * LINE + MARGIN + below,
            lines,
            colours,
            inner,
        }
    }

    fn draw(&self, svg: &mut String, left: f64, top: f64) {
        let (fill, edge) = self.colours;
        let (width, height) = (self.width, self.height);
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             rx=\"4\" fill=\"{fill}\" stroke=\"{edge}\"/>"
        );
        for (number, line) in self.lines.iter().enumerate() {
            let weight = if number == 0 { " font-weight=\"bold\"" } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\"{weight} fill=\"#111111\">{}</text>",
                left + MARGIN,
                top + (number + 1) as f64 * LINE,
                escape(line)
            );
        }
        let mut next = left + MARGIN;
        let below = top + self.lines.len() as f64 * LINE + MARGIN;
        for area in &self.inner {
            area.draw(svg, next, below);
            next += area.width + MARGIN;
        }
    }
}

/// The picture of `machine`.
pub fn draw(machine: &Machine) -> String {
    let nodes: Vec<Area> = machine.nodes.iter().map(|node| node_area(machine, node)).collect();
    let width = nodes.iter().map(|area| area.width).fold(100.0, f64::max) + 2.0 * MARGIN;
    let height = nodes.iter().map(|area| area.height + MARGIN).sum::<f64>() + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" {FONT} font-size=\"{TEXT}\">\n<rect \
         width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut top = MARGIN;
    for node in &nodes {
        node.draw(&mut svg, MARGIN, top);
        top += node.height + MARGIN;
    }
    svg + "</svg>\n"
}

fn node_area(machine: &Machine, node: &NumaNode) -> Area {
    let mut lines = vec![node_name(node)];
    if !node.cpus.is_empty() {
        let socket =
            machine.socket_of(node).map_or(String::new(), |socket| format!(", socket {socket}"));
        lines.push(format!("processors {}{socket}", node.cpus));
    }
    let caches = machine.l3_groups().into_iter().filter(|cpus| cpus.is_subset(&node.cpus));
    let caches = caches.map(|cpus| Area::new(vec![format!("L3 of {cpus}")], BRIDGE, Vec::new()));
    let adapters = node.adapters.iter().flat_map(|adapter| &adapter.networks);
    let adapters = adapters.map(|it| Area::new(vec![network_name(it)], NETWORK, Vec::new()));
    let devices = node.devices.iter().map(device_area);
    Area::new(lines, NODE, caches.chain(devices).chain(adapters).collect())
}

fn device_area(device: &PciDevice) -> Area {
    let mut lines: Vec<String> = device.gpus.iter().map(gpu_name).collect();
    lines.extend(device.adapter.iter().flat_map(|it| &it.networks).map(network_name));
    if lines.is_empty() {
        lines.push(device_name(device).to_owned());
    }
    lines.push(device.bus.to_string());
    lines.push(link_name(device.link));
    let nvlinks: u32 = device.gpus.iter().flat_map(|gpu| &gpu.nvlinks).map(|it| it.count).sum();
    if nvlinks > 0 {
        lines.push(format!("{nvlinks} NVLinks"));
    }
    let colours = match device.class.kind() {
        _ if !device.gpus.is_empty() => GPU,
        _ if device.adapter.is_some() => NETWORK,
        PciKind::Gpu => GPU,
        PciKind::Network => NETWORK,
        _ => BRIDGE,
    };
    Area::new(lines, colours, device.children.iter().map(device_area).collect())
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::*;

    #[test]
    fn boxes_lie_within_each_other_and_not_on_each_other() {
        let machine = examples::dgx();
        let area = node_area(&machine, &machine.nodes[0]);
        fn check(area: &Area) {
            let inner: f64 = area.inner.iter().map(|inner| inner.width).sum();
            assert!(inner + MARGIN * (area.inner.len() + 1) as f64 <= area.width + 1e-9);
            assert!(area.inner.iter().all(|inner| inner.height + 2.0 * MARGIN <= area.height));
            area.inner.iter().for_each(check);
        }
        check(&area);
        let svg = draw(&machine);
        assert_eq!(svg.matches("GPU ").count(), 8);
        assert!(svg.contains("mlx5_7, port 1, 400 Gbit/s") && svg.ends_with("</svg>\n"));
        assert!(roxmltree::Document::parse(&svg).is_ok());
    }
}
