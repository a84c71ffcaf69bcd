//! The compiled kernels, embedded in the library, and the choice among them for a device.
//! `scripts/cuda-images` compiles them from `kernels/`.

use crate::driver::{Device, DriverError};
use crate::module::KernelModule;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// Machine code, or PTX, which the driver compiles for its device.
struct Image {
    name: &'static str,
    /// The compute capability for which it was compiled.
    capability: (u32, u32),
    /// Whether it is PTX. PTX runs on every later device, machine code only on later devices of the
    /// same major number.
    ptx: bool,
    bytes: &'static [u8],
}

/// Machine code for each major number, and PTX for the other devices.
const IMAGES: [Image; 6] = [
    Image {
        name: "sm_75",
        capability: (7, 5),
        ptx: false,
        bytes: include_bytes!("../images/interpret_sm_75.cubin"),
    },
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
        name: "sm_120",
        capability: (12, 0),
        ptx: false,
        bytes: include_bytes!("../images/interpret_sm_120.cubin"),
    },
    Image {
        name: "PTX for compute_70",
        capability: (7, 0),
        ptx: true,
        bytes: include_bytes!("../images/interpret.ptx"),
    },
];

impl Image {
    fn runs_on(&self, capability: (u32, u32)) -> bool {
        self.capability <= capability && (self.ptx || self.capability.0 == capability.0)
    }
}

/// No image of the kernels runs on the device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The device is older than all images.
    #[error(
        "the kernels need a GPU of compute capability 7.0 (Volta, 2017) or later, and {name} has \
         {}.{}; use host memory (MAYPOLE_DEVICE=host)",
        capability.0, capability.1
    )]
    TooOld {
        /// The device's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// The driver refused all images for the device.
    #[error(
        "the driver, of CUDA {}.{}, refuses all kernels for {name}, a GPU of compute capability \
         {}.{}: {}; update the driver",
        version / 1000, version % 1000 / 10, capability.0, capability.1, Refusals(refused)
    )]
    Refused {
        /// The device's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// The CUDA version of the driver: 12030 means 12.3.
        version: i32,
        /// Each image that was tried, with the error of the driver.
        refused: Vec<(&'static str, DriverError)>,
    },
    /// The driver failed for another reason.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Formats a list of refused images.
struct Refusals<'a>(&'a [(&'static str, DriverError)]);

impl Display for Refusals<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (image, error)) in self.0.iter().enumerate() {
            write!(f, "{}{image}: {error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Loads the kernels on `device`, from machine code if the driver accepts one, otherwise from PTX.
/// Also returns the name of the image.
///
/// # Errors
/// The device is too old, or the driver refuses all images.
pub fn load(device: &Arc<Device>) -> Result<(KernelModule, &'static str), ImageError> {
    let capability = device.capability()?;
    let mut refused = Vec::new();
    for (image, bytes) in images(capability) {
        // SAFETY: the images are complete and compiled from the kernels of this crate by
        // scripts/cuda-images, which checks this.
        match unsafe { KernelModule::load(device, bytes) } {
            Ok(module) => return Ok((module, image)),
            // The device has failed, so another image would not help.
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

/// The names and bytes of the images that run on a device of that compute capability, the best one
/// first.
pub fn images(capability: (u32, u32)) -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().filter(move |i| i.runs_on(capability)).map(|i| (i.name, i.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(capability: (u32, u32)) -> Vec<&'static str> {
        images(capability).map(|(name, _)| name).collect()
    }

    #[test]
    fn machine_code_runs_on_its_major_number_and_ptx_on_all_later_devices() {
        let ptx = "PTX for compute_70";
        assert_eq!(names((6, 1)), [""; 0]);
        assert_eq!(names((7, 0)), [ptx]);
        assert_eq!(names((7, 5)), ["sm_75", ptx]);
        assert_eq!(names((8, 0)), ["sm_80", ptx]);
        assert_eq!(names((8, 9)), ["sm_80", ptx]);
        assert_eq!(names((9, 0)), ["sm_90", ptx]);
        assert_eq!(names((10, 3)), ["sm_100", ptx]);
        assert_eq!(names((12, 0)), ["sm_120", ptx]);
        assert_eq!(names((12, 1)), ["sm_120", ptx]);
        assert_eq!(names((13, 0)), [ptx]);
    }

    #[test]
    fn errors_name_the_images_and_the_device() {
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
    fn images_have_the_format_that_their_names_say() {
        for image in &IMAGES {
            if image.ptx {
                let text = std::str::from_utf8(image.bytes).expect("PTX is text");
                assert!(text.starts_with(".version 7.0\n.target sm_70\n"), "{}", &text[..40]);
            } else {
                // An ELF file for machine 190, which is CUDA.
                assert_eq!(image.bytes[..4], *b"\x7fELF");
                assert_eq!(image.bytes[18..20], [190, 0]);
            }
        }
    }
}
