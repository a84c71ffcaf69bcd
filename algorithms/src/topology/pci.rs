//! What PCI says of a device: its class, its identification and its link.

use std::fmt;

/// The lanes of a link whose width is not known, as in NCCL.
const USUAL_WIDTH: u32 = 16;
/// The speed of a link whose speed is not known, in tenths of GT/s, as in NCCL.
const USUAL_SPEED: u32 = 80;
/// The kernel reports this width if it does not know the width.
const UNKNOWN_WIDTH: u32 = 255;

/// The numbers of the maker and of the model. They are not known for every device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciIds {
    /// The maker.
    pub vendor: Option<u16>,
    /// The model, as the maker numbers it.
    pub device: Option<u16>,
    /// The maker of the board.
    pub subsystem_vendor: Option<u16>,
    /// The model of the board.
    pub subsystem_device: Option<u16>,
}

/// The class of a PCI device: 24 bits, `0x030200` for a GPU that drives no screen.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PciClass(pub u32);

/// What a class means for the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciKind {
    /// A bridge or switch, and everything that is none of the others.
    Bridge,
    /// A GPU.
    Gpu,
    /// A network adapter.
    Network,
    /// A switch of NVLink.
    NvSwitch,
    /// An NVLink bridge to a processor.
    Processor,
}

impl PciClass {
    /// A bridge.
    pub const BRIDGE: Self = Self(0x06_0400);
    /// A switch of NVLink.
    pub const NV_SWITCH: Self = Self(0x06_8000);
    /// A GPU.
    pub const GPU: Self = Self(0x03_0200);
    /// A network adapter.
    pub const NETWORK: Self = Self(0x02_0000);

    /// Reads `0x030200`, or only its beginning, such as `0x03`: NCCL compares beginnings.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().strip_prefix("0x")?;
        let fits = (1..=6).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_hexdigit());
        let number = fits.then(|| u32::from_str_radix(digits, 16).ok()).flatten()?;
        Some(Self(number << (4 * (6 - digits.len()))))
    }

    /// What the class means for the topology.
    pub fn kind(self) -> PciKind {
        match self.0 {
            0x06_8000 => PciKind::NvSwitch,
            0x06_8001 => PciKind::Processor,
            0x03_0000..=0x03_ffff => PciKind::Gpu,
            0x02_0000..=0x02_ffff => PciKind::Network,
            _ => PciKind::Bridge,
        }
    }
}

/// As the kernel writes it: `0x030200`.
impl fmt::Display for PciClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:06x}", self.0)
    }
}

impl fmt::Debug for PciClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The link between a PCI device and what is above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciLink {
    /// Transfers per second and lane, in tenths of GT/s: 160 for 16 GT/s. None if unknown, as in
    /// many virtual machines.
    pub speed: Option<u32>,
    /// The number of lanes. None if unknown.
    pub width: Option<u32>,
}

impl PciLink {
    /// Reads a speed as the kernel writes it: `16.0 GT/s PCIe`, before Linux 5.7 `16 GT/s`. None if
    /// the speed is unknown.
    pub fn parse_speed(text: &str) -> Option<u32> {
        let (number, unit) = text.trim().split_once(' ')?;
        let speed: f64 = number.parse().ok()?;
        let known = unit.starts_with("GT/s") && speed > 0.0 && speed < 100_000.0;
        known.then_some((speed * 10.0).round() as u32)
    }

    /// Reads a width; 0 and 255 mean that it is unknown.
    pub fn parse_width(text: &str) -> Option<u32> {
        let width = text.trim().parse().ok()?;
        (width > 0 && width < UNKNOWN_WIDTH).then_some(width)
    }

    /// The slower and narrower of two ends of a link.
    pub fn common(self, other: Self) -> Self {
        let least = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        Self { speed: least(self.speed, other.speed), width: least(self.width, other.width) }
    }

    /// The bandwidth of large transfers in GB/s (10^9), with NCCL's figures: 12 for 16 lanes of 8
    /// GT/s. What is unknown counts as that.
    pub fn bandwidth(self) -> f64 {
        let speed = self.speed.unwrap_or(USUAL_SPEED);
        // 8 bits of 10 carry data up to 5 GT/s, 128 of 130 above; headers cost the rest.
        let gigabits_per_lane = f64::from(speed) * if speed < 80 { 0.6 } else { 0.75 };
        f64::from(self.width.unwrap_or(USUAL_WIDTH)) * gigabits_per_lane / 80.0
    }
}

/// `16.0 GT/s x16`, with `?` for what is unknown.
impl fmt::Display for PciLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.speed {
            Some(speed) => write!(f, "{}.{} GT/s", speed / 10, speed % 10)?,
            None => f.write_str("? GT/s")?,
        }
        match self.width {
            Some(width) => write!(f, " x{width}"),
            None => f.write_str(" x?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_the_bandwidth_that_nccl_gives_them() {
        let link = |text, width| PciLink { speed: PciLink::parse_speed(text), width };
        // The figures of NCCL's table, in hundreds of Mbit/s per lane.
        for (text, per_lane) in [
            ("2.5 GT/s", 15.0),
            ("5 GT/s", 30.0),
            ("8 GT/s", 60.0),
            ("16 GT/s", 120.0),
            ("32 GT/s", 240.0),
            ("2.5 GT/s PCIe", 15.0),
            ("5.0 GT/s PCIe", 30.0),
            ("8.0 GT/s PCIe", 60.0),
            ("16.0 GT/s PCIe", 120.0),
            ("32.0 GT/s PCIe", 240.0),
            ("64.0 GT/s PCIe", 480.0),
            ("Unknown", 60.0),
            ("", 60.0),
        ] {
            for width in [1, 8, 16] {
                let expected = f64::from(width) * per_lane / 80.0;
                assert!((link(text, Some(width)).bandwidth() - expected).abs() < 1e-9, "{text}");
            }
        }
        assert_eq!(link("8 GT/s", None).bandwidth(), 12.0);
    }

    #[test]
    fn unknown_widths_and_speeds_are_none() {
        assert_eq!([PciLink::parse_width("0"), PciLink::parse_width("255")], [None, None]);
        assert_eq!((PciLink::parse_width("16\n"), PciLink::parse_width("")), (Some(16), None));
        assert_eq!(PciLink::parse_speed("1e99 GT/s"), None);
        let (wide, fast) = (
            PciLink { speed: Some(80), width: Some(16) },
            PciLink { speed: Some(160), width: Some(8) },
        );
        assert_eq!(wide.common(fast).to_string(), "8.0 GT/s x8");
        assert_eq!(PciLink::default().common(wide), wide);
        assert_eq!(PciLink::default().to_string(), "? GT/s x?");
    }

    #[test]
    fn the_beginning_of_a_class_is_enough() {
        let kind = |text| PciClass::parse(text).map(PciClass::kind);
        assert_eq!((kind("0x03"), kind("0x030000")), (Some(PciKind::Gpu), Some(PciKind::Gpu)));
        assert_eq!(kind("0x020700"), Some(PciKind::Network));
        assert_eq!(
            (kind("0x0680"), kind("0x068001")),
            (Some(PciKind::NvSwitch), Some(PciKind::Processor))
        );
        assert_eq!(
            (kind("0x060400"), kind("0x080100")),
            (Some(PciKind::Bridge), Some(PciKind::Bridge))
        );
        assert_eq!((kind("030200"), kind("0x"), kind("0x0302000")), (None, None, None));
    }
}
