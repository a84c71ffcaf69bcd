//! A CUDA device with the kernels loaded, shared by all communicators of the process that use it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use maypole_cuda::driver::{CurrentContext, Device, Driver, DriverError};
use maypole_cuda::module::OwnedKernel;
use maypole_cuda::pool::DevicePool;
use maypole_cuda::stream::{CudaStream, RelaxedCapture};
use maypole_cuda::{image, launch};

use crate::error::Error;
use crate::process::PerProcess;

/// A device that communicators use.
pub(crate) struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(crate) pool: Arc<DevicePool>,
    pub(crate) kernel: OwnedKernel,
    /// The kernel that writes one word, see [`write_word`](Self::write_word).
    word_writer: OwnedKernel,
    pub(crate) name: String,
    /// The identifier of the device, the same in every process that sees it.
    pub(crate) uuid: [u8; 16],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// The number of blocks of the kernel that certainly are resident at the same time.
    pub(crate) resident_blocks: u32,
    /// Whether streams can wait for words in memory. Else events have to order works.
    pub(crate) has_stream_waits: bool,
}

impl Gpu {
    /// Opens device `ordinal` of those that this process sees. The first communicator loads the
    /// kernels; they are unloaded with the last one.
    ///
    /// # Errors
    /// There is no such device, or it cannot run the kernels.
    pub(crate) fn open(ordinal: i32) -> Result<Arc<Self>, Error> {
        type OpenDevices = Vec<(i32, Weak<Gpu>)>;
        static OPEN: PerProcess<Mutex<OpenDevices>> = PerProcess::new();
        // A thread that panicked cannot have left the list half changed.
        let mut open = OPEN.get().lock().unwrap_or_else(PoisonError::into_inner);
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
        let module = Arc::new(module);
        let kernel = OwnedKernel::new(&module, launch::KERNEL_NAME)?;
        let word_writer = OwnedKernel::new(&module, launch::WRITE_WORD_NAME)?;
        let (uuid, resident_blocks) = (device.uuid()?, device.multiprocessors()?.max(1));
        // Every GPU can have as many as are best; the simulated one has a fiber for each.
        let threads = launch::THREADS.min(device.most_threads()?);
        let (pool, has_stream_waits) = (DevicePool::new(&device), device.has_stream_waits());
        Ok(Self {
            device,
            pool,
            kernel,
            word_writer,
            name,
            uuid,
            threads,
            resident_blocks,
            has_stream_waits,
        })
    }

    /// Queues a kernel that writes `value` at `address`.
    ///
    /// # Errors
    /// The driver refuses the launch.
    ///
    /// # Safety
    /// The address is of eight bytes, aligned to 8, of memory that kernels of this device reach,
    /// that nothing else uses, and that stays allocated until the stream has run this.
    pub(crate) unsafe fn write_word(
        &self,
        current: &CurrentContext<'_>,
        stream: &CudaStream,
        address: u64,
        value: u64,
    ) -> Result<(), DriverError> {
        let (write, stream) = (launch::WordWrite { to: address, value }, stream.handle());
        // SAFETY: the kernel takes a WordWrite; the caller vouches for the address.
        unsafe { self.word_writer.launch(current, (1, 32), stream, &write) }
    }
}
