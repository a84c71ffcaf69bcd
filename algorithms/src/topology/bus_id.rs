//! The address of a PCI device.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI device, as in `0000:c1:00.0`. The domain has more than four digits behind
/// some bridges, and eight in what NVIDIA's tools print.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BusId {
    /// The PCI domain (also called segment).
    pub domain: u32,
    /// The bus in the domain.
    pub bus: u8,
    /// The device on the bus, below 32.
    pub device: u8,
    /// The function of the device, below 8 (below 16 in some virtual machines).
    pub function: u8,
}

impl FromStr for BusId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str, digits: usize| {
            let hexadecimal = text.bytes().all(|c| c.is_ascii_hexdigit());
            let fits = (1..=digits).contains(&text.len());
            (hexadecimal && fits).then(|| u32::from_str_radix(text, 16).ok()).flatten().ok_or(())
        };
        let (domain, rest) = text.split_once(':').ok_or(())?;
        let (bus, rest) = rest.split_once(':').ok_or(())?;
        let (device, function) = rest.split_once('.').ok_or(())?;
        Ok(Self {
            domain: number(domain, 8)?,
            bus: number(bus, 2)? as u8,
            device: number(device, 2)? as u8,
            function: number(function, 1)? as u8,
        })
    }
}

/// In lower case with at least four digits of the domain, as the kernel writes it.
impl fmt::Display for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for BusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_usual_form() {
        let id: BusId = "0000:c1:00.0".parse().unwrap();
        assert_eq!(id, BusId { domain: 0, bus: 0xc1, device: 0, function: 0 });
        assert_eq!("00000000:C1:00.0".parse(), Ok(id));
        assert_eq!("10000:e1:1f.7".parse::<BusId>().unwrap().to_string(), "10000:e1:1f.7");
        assert_eq!(id.to_string(), "0000:c1:00.0");
        for bad in
            ["", "c1:00.0", "0000:c1:00", "0000:c1:00.g", "0000:1c1:00.0", ":::.", "+1:0:0.0"]
        {
            assert_eq!(bad.parse::<BusId>(), Err(()), "{bad}");
        }
    }
}
