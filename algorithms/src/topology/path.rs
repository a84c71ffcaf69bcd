//! The kinds of paths between devices, in NCCL's names and order.

use std::fmt;
use std::str::FromStr;

/// What a path between two devices goes through, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Within one device.
    Loc,
    /// NVLink.
    Nvl,
    /// NVLink through another GPU.
    Nvb,
    /// A chip-to-chip link between a GPU and a processor.
    C2c,
    /// At most one PCI switch.
    Pix,
    /// Several PCI switches, but no processor.
    Pxb,
    /// A chip-to-chip link to a processor, and from there PCI.
    P2c,
    /// NVLink to another GPU, and from there PCI.
    Pxn,
    /// A processor (a PCI host bridge).
    Phb,
    /// The connection between NUMA nodes.
    Sys,
    /// A network.
    Net,
    /// No path.
    Dis,
}

impl PathKind {
    /// All kinds, best first.
    pub const ALL: [Self; 12] = [
        Self::Loc,
        Self::Nvl,
        Self::Nvb,
        Self::C2c,
        Self::Pix,
        Self::Pxb,
        Self::P2c,
        Self::Pxn,
        Self::Phb,
        Self::Sys,
        Self::Net,
        Self::Dis,
    ];

    /// NCCL's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loc => "LOC",
            Self::Nvl => "NVL",
            Self::Nvb => "NVB",
            Self::C2c => "C2C",
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::P2c => "P2C",
            Self::Pxn => "PXN",
            Self::Phb => "PHB",
            Self::Sys => "SYS",
            Self::Net => "NET",
            Self::Dis => "DIS",
        }
    }
}

/// Reads a level as `NCCL_NET_GDR_LEVEL` and `NCCL_P2P_LEVEL` have it: a name from LOC to SYS, or
/// an integer of NCCL 2.4: 0 for LOC, 1 for PIX, 2 for PXB, 3 for PHB, and SYS for all above.
impl FromStr for PathKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(number) = text.parse::<u32>() {
            let old = [Self::Loc, Self::Pix, Self::Pxb, Self::Phb];
            return Ok(old.get(number as usize).copied().unwrap_or(Self::Sys));
        }
        let levels = Self::ALL.into_iter().filter(|kind| *kind <= Self::Sys);
        levels.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A path between two devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    /// What it goes through.
    pub kind: PathKind,
    /// GB/s (10^9): that of its slowest link.
    pub bandwidth: f64,
    /// How many links it has.
    pub hops: u32,
}

impl Path {
    /// The path between devices that are not connected.
    pub const NONE: Self = Self { kind: PathKind::Dis, bandwidth: 0.0, hops: 0 };

    /// This path and then `next`.
    pub(super) fn then(self, next: Self) -> Self {
        Self {
            kind: self.kind.max(next.kind),
            bandwidth: self.bandwidth.min(next.bandwidth),
            hops: self.hops + next.hops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_names_or_integers_of_old_versions() {
        assert_eq!("PXB".parse(), Ok(PathKind::Pxb));
        assert_eq!("phb".parse(), Ok(PathKind::Phb));
        let old =
            ["0", "1", "2", "3", "4", "5", "77"].map(|text| text.parse::<PathKind>().unwrap());
        let names = old.map(PathKind::name);
        assert_eq!(names, ["LOC", "PIX", "PXB", "PHB", "SYS", "SYS", "SYS"]);
        for bad in ["", "NET", "DIS", "-1", "PX"] {
            assert_eq!(bad.parse::<PathKind>(), Err(()), "{bad}");
        }
        assert!(PathKind::ALL.is_sorted());
    }
}
