//! A CUDA device with the kernels loaded, shared by all communicators of the process that use it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::module::OwnedKernel;
use maypole_cuda::pool::DevicePool;
use maypole_cuda::stream::RelaxedCapture;
use maypole_cuda::{image, launch};

use crate::error::Error;

/// A device that communicators use.
pub(crate) struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(crate) pool: Arc<DevicePool>,
    pub(crate) kernel: OwnedKernel,
    pub(crate) name: String,
    /// The identifier of the device, the same in every process that sees it.
    pub(crate) uuid: [u8; 16],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// The number of blocks of the kernel that certainly are resident at the same time.
    pub(crate) resident_blocks: u32,
}

impl Gpu {
    /// Opens device `ordinal` of those that this process sees. The first communicator loads the
    /// kernels; they are unloaded with the last one.
    ///
    /// # Errors
    /// There is no such device, or it cannot run the kernels.
    pub(crate) fn open(ordinal: i32) -> Result<Arc<Self>, Error> {
        static OPEN: Mutex<Vec<(i32, Weak<Gpu>)>> = Mutex::new(Vec::new());
        // A thread that panicked cannot have left the list half changed.
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
        let Some(driver) = Driver::shared()? else {
            return Err(Error::InvalidArgument {
                what: format!(
                    "CUDA device {ordinal}: this process sees no CUDA device; check \
                     CUDA_VISIBLE_DEVICES and nvidia-smi"
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
        // Another thread may be capturing, which must not forbid this thread to load kernels.
        let _relaxed = RelaxedCapture::begin(driver)?;
        let (module, image) = image::load(&device).map_err(|error| match error {
            image::ImageError::Driver(error) => Error::Cuda(error),
            other => Error::Unsupported { what: other.to_string() },
        })?;
        log::info!(target: "INIT", "CUDA device {ordinal} ({name}): kernels as {image}");
        let kernel = OwnedKernel::new(module, launch::KERNEL_NAME)?;
        let (uuid, resident_blocks) = (device.uuid()?, device.multiprocessors()?.max(1));
        // Every GPU can have as many as are best; the simulated one has a fiber for each.
        let threads = launch::THREADS.min(device.most_threads()?);
        let pool = DevicePool::new(&device);
        Ok(Self { device, pool, kernel, name, uuid, threads, resident_blocks })
    }
}
