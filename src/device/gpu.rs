//! A CUDA device with the kernel loaded on it, shared by all communicators of the process that use it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use maypole_cuda::driver::{Device, Entry};
use maypole_cuda::stream::Relaxed;
use maypole_cuda::{image, launch};

use super::detect::driver;
use super::pool::Pool;
use crate::error::Error;

/// Threads of a block on the simulated GPU, where each is a fiber.
const SIMULATED_THREADS: u32 = 32;

/// A device that communicators use.
pub(crate) struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernel: Entry,
    pub(crate) name: String,
    /// The same for every process that sees the device.
    pub(crate) uuid: [u8; 16],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Blocks of the kernel that are resident together for certain.
    pub(crate) resident: u32,
}

impl Gpu {
    /// Device `ordinal` of those that this process sees. The kernel is loaded by the first communicator, and goes with the last.
    pub(crate) fn open(ordinal: i32) -> Result<Arc<Self>, Error> {
        static OPEN: Mutex<Vec<(i32, Weak<Gpu>)>> = Mutex::new(Vec::new());
        // Whoever panicked here has left the list as it was.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.iter().find(|(number, _)| *number == ordinal);
        if let Some(gpu) = known.and_then(|(_, gpu)| gpu.upgrade()) {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::load(ordinal)?);
        open.retain(|(number, _)| *number != ordinal);
        open.push((ordinal, Arc::downgrade(&gpu)));
        Ok(gpu)
    }

    fn load(ordinal: i32) -> Result<Self, Error> {
        let Some(driver) = driver()? else {
            return Err(Error::InvalidArgument {
                what: format!(
                    "CUDA device {ordinal}: this process sees none; look at CUDA_VISIBLE_DEVICES and nvidia-smi"
                ),
            });
        };
        let devices = driver.devices()?;
        if !(0..devices).contains(&ordinal) {
            return Err(Error::InvalidArgument {
                what: format!(
                    "CUDA device {ordinal}: this process sees {devices}, numbered from 0"
                ),
            });
        }
        let device = Device::open(driver, ordinal)?;
        let name = device.name()?;
        let simulated = name.starts_with("Simulated GPU");
        // Another thread may be capturing.
        let _relaxed = Relaxed::begin(driver)?;
        let (module, image) = image::load(&device).map_err(|error| match error {
            image::ImageError::Driver(error) => Error::Cuda(error),
            other => Error::Unsupported { what: other.to_string() },
        })?;
        log::info!(target: "INIT", "CUDA device {ordinal} ({name}): kernels as {image}");
        let kernel = Entry::new(module, launch::KERNEL)?;
        let (uuid, resident) = (device.uuid()?, device.multiprocessors()?.max(1));
        let threads = if simulated { SIMULATED_THREADS } else { launch::THREADS };
        let pool = Pool::new(&device);
        Ok(Self { device, pool, kernel, name, uuid, threads, resident })
    }
}
