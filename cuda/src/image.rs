//! The compiled kernels, embedded, and those for a device. `scripts/cuda-images` makes them from `kernels/`.

use crate::driver::{Device, DriverError, KernelModule};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// Code for a device, or PTX, which the driver compiles for it.
struct Image {
    name: &'static str,
    /// The compute capability that it is for.
    capability: (u32, u32),
    /// PTX serves every later device, machine code those of the same major number alone.
    ptx: bool,
    bytes: &'static [u8],
}

/// Machine code of each major number, and the PTX for the rest.
const IMAGES: [Image; 4] = [
    Image {
        name: "sm_80",
        capability: (8, 0),
        ptx: false,
        bytes: include_bytes!("../images/interpret_sm_80.cubin"),
    },
    Image {
        name: "sm_90",
        capability: (9, 0),
        ptx: false,
        bytes: include_bytes!("../images/interpret_sm_90.cubin"),
    },
    Image {
        name: "sm_100",
        capability: (10, 0),
        ptx: false,
        bytes: include_bytes!("../images/interpret_sm_100.cubin"),
    },
    Image {
        name: "PTX for compute_70",
        capability: (7, 0),
        ptx: true,
        bytes: include_bytes!("../images/interpret.ptx"),
    },
];

impl Image {
    fn serves(&self, capability: (u32, u32)) -> bool {
        self.capability <= capability && (self.ptx || self.capability.0 == capability.0)
    }
}

/// No image of the kernels runs on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The device is older than all of them.
    #[error(
        "the kernels need a GPU of compute capability 7.0 (Volta, 2017) or later; {name} is of {}.{}: use host memory (MAYPOLE_DEVICE=host)",
        capability.0, capability.1
    )]
    TooOld {
        /// The device's name.
        name: String,
        /// What it is.
        capability: (u32, u32),
    },
    /// The driver took none of those that are for the device.
    #[error(
        "the driver, of CUDA {}.{}, takes none of the kernels for {name}, a GPU of compute capability {}.{}: {}; update the driver",
        version / 1000, version % 1000 / 10, capability.0, capability.1, Refusals(refused)
    )]
    Refused {
        /// The device's name.
        name: String,
        /// What it is.
        capability: (u32, u32),
        /// Of the driver, as it counts: 12030 is 12.3.
        version: i32,
        /// Each image that was tried, and the driver's answer.
        refused: Vec<(&'static str, DriverError)>,
    },
    /// The device could not be asked what it is.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

struct Refusals<'a>(&'a [(&'static str, DriverError)]);

impl Display for Refusals<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (image, error)) in self.0.iter().enumerate() {
            write!(f, "{}{image}: {error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Loads the kernels on `device`, and says as which image: machine code where there is any that the driver takes, else PTX.
///
/// # Errors
/// A device that is too old, a driver that refuses them all.
pub fn load(device: &Arc<Device>) -> Result<(KernelModule, &'static str), ImageError> {
    let capability = device.capability()?;
    let mut refused = Vec::new();
    for (image, bytes) in images(capability) {
        // SAFETY: the images are made of this crate's kernels, whole, by scripts/cuda-images; scripts/test compares.
        match unsafe { KernelModule::load(device, bytes) } {
            Ok(module) => return Ok((module, image)),
            // The driver may have no memory left, or the device may have failed: another image would not help.
            Err(error) if error.is_sticky() => return Err(error.into()),
            Err(error) => refused.push((image, error)),
        }
    }
    let name = device.name()?;
    Err(match refused.is_empty() {
        true => ImageError::TooOld { name, capability },
        false => {
            ImageError::Refused { name, capability, version: device.driver().version(), refused }
        }
    })
}

/// The images that run on a device of that compute capability, the best first: their names and bytes.
pub fn images(capability: (u32, u32)) -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().filter(move |i| i.serves(capability)).map(|i| (i.name, i.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(capability: (u32, u32)) -> Vec<&'static str> {
        images(capability).map(|(name, _)| name).collect()
    }

    #[test]
    fn machine_code_serves_its_own_major_number_and_ptx_all_that_came_later() {
        let ptx = "PTX for compute_70";
        assert_eq!(names((6, 1)), [""; 0]);
        assert_eq!(names((7, 0)), [ptx]);
        assert_eq!(names((7, 5)), [ptx]);
        assert_eq!(names((8, 0)), ["sm_80", ptx]);
        assert_eq!(names((8, 9)), ["sm_80", ptx]);
        assert_eq!(names((9, 0)), ["sm_90", ptx]);
        assert_eq!(names((10, 3)), ["sm_100", ptx]);
        assert_eq!(names((12, 0)), [ptx]);
    }

    #[test]
    fn errors_say_what_was_tried_on_what() {
        let driver = DriverError::NoFunction { function: "cuX", since: 12030, version: 11080 };
        let refused = vec![("sm_90", driver.clone()), ("PTX", driver)];
        let name = "G".to_owned();
        let error = ImageError::Refused { name, capability: (9, 0), version: 11080, refused };
        let text = error.to_string();
        for part in ["CUDA 11.8", "for G", "capability 9.0", "sm_90: the CUDA driver", "; PTX: the"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn images_are_what_their_names_say() {
        for image in &IMAGES {
            if image.ptx {
                let text = std::str::from_utf8(image.bytes).expect("PTX is text");
                assert!(text.starts_with(".version 7.0\n.target sm_70\n"), "{}", &text[..40]);
            } else {
                // An ELF file for CUDA's machine, 190.
                assert_eq!(image.bytes[..4], *b"\x7fELF");
                assert_eq!(image.bytes[18..20], [190, 0]);
            }
        }
    }
}
