//! Devices, and their primary contexts.

use super::functions::call;
use super::{Driver, DriverError};
use cudarc::driver::sys::{CUcontext, CUdevice_attribute, CUresult};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

const ALREADY_ENABLED: i32 = CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED as i32;

/// A device and its primary context.
pub struct Device {
    driver: Arc<Driver>,
    ordinal: c_int,
    context: CUcontext,
}

// SAFETY: a primary context may be made current on, and used from, any number of threads.
unsafe impl Send for Device {}
// SAFETY: as for `Send`; the fields never change.
unsafe impl Sync for Device {}

impl Device {
    /// Opens device `ordinal` of those that this process sees.
    ///
    /// # Errors
    /// There is no such device, or the driver fails.
    pub fn open(driver: &Arc<Driver>, ordinal: i32) -> Result<Arc<Self>, DriverError> {
        let mut device = 0;
        call!(driver, cuDeviceGet(&mut device, ordinal))?;
        let mut context = ptr::null_mut();
        call!(driver, cuDevicePrimaryCtxRetain(&mut context, device))?;
        Ok(Arc::new(Self { driver: driver.clone(), ordinal: device, context }))
    }

    /// The number of the device whose context is current on this thread, if there is one.
    ///
    /// # Errors
    /// The driver fails.
    pub fn current_ordinal(driver: &Driver) -> Result<Option<i32>, DriverError> {
        let mut context = ptr::null_mut();
        call!(driver, cuCtxGetCurrent(&mut context))?;
        if context.is_null() {
            return Ok(None);
        }
        let mut ordinal = 0;
        call!(driver, cuCtxGetDevice(&mut ordinal))?;
        Ok(Some(ordinal))
    }

    /// The number of the device among those that this process sees.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// The driver of the device.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// The vendor's name of the device.
    ///
    /// # Errors
    /// The driver fails.
    pub fn name(&self) -> Result<String, DriverError> {
        let mut text = [0 as c_char; 256];
        call!(&self.driver, cuDeviceGetName(text.as_mut_ptr(), 255, self.ordinal))?;
        Ok(to_string(&text))
    }

    /// The address on the PCI bus in hexadecimal, `domain:bus:device.function`, as in
    /// /sys/bus/pci/devices.
    ///
    /// # Errors
    /// The driver fails.
    pub fn pci_bus_id(&self) -> Result<String, DriverError> {
        let mut text = [0 as c_char; 64];
        call!(&self.driver, cuDeviceGetPCIBusId(text.as_mut_ptr(), 63, self.ordinal))?;
        Ok(to_string(&text).to_lowercase())
    }

    /// The identifier of the device, the same in every process that sees it. Of a partitioned
    /// device it is the identifier of the partition, if the driver is of CUDA 11.4 or later.
    ///
    /// # Errors
    /// The driver fails.
    pub fn uuid(&self) -> Result<[u8; 16], DriverError> {
        Self::uuid_of(&self.driver, self.ordinal)
    }

    /// As [`uuid`](Self::uuid), of device `ordinal`, which gets no context.
    ///
    /// # Errors
    /// There is no such device, or the driver fails.
    pub fn uuid_of(driver: &Driver, ordinal: i32) -> Result<[u8; 16], DriverError> {
        let mut uuid = [0; 16];
        match call!(driver, cuDeviceGetUuid_v2(&mut uuid, ordinal)) {
            Err(DriverError::NoFunction { .. }) => {
                call!(driver, cuDeviceGetUuid(&mut uuid, ordinal))?;
            }
            result => result?,
        }
        Ok(uuid)
    }

    /// The major and minor number of the compute capability: (9, 0) means sm_90.
    ///
    /// # Errors
    /// The driver fails.
    pub fn capability(&self) -> Result<(u32, u32), DriverError> {
        use CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        Ok((self.attribute(MAJOR as i32)? as u32, self.attribute(MINOR as i32)? as u32))
    }

    /// The number of multiprocessors. At least as many blocks of the interpreter are resident at
    /// the same time.
    ///
    /// # Errors
    /// The driver fails.
    pub fn multiprocessors(&self) -> Result<u32, DriverError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(self.attribute(attribute as i32)? as u32)
    }

    /// The most threads of a block.
    ///
    /// # Errors
    /// The driver fails.
    pub fn most_threads(&self) -> Result<u32, DriverError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        Ok(self.attribute(attribute as i32)? as u32)
    }

    /// Whether streams of the device can wait for the value of a word in memory.
    pub fn has_stream_waits(&self) -> bool {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V2;
        let driver = self.driver.functions();
        driver.cuStreamWaitValue64_v2.is_some() && self.attribute(attribute as i32) == Ok(1)
    }

    /// Whether kernels can be launched in a memory synchronisation domain of their own: their
    /// writes to other devices then do not delay the fences of other kernels. From sm_90 on.
    pub fn has_memory_domains(&self) -> bool {
        /// CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT, which came with CUDA 12.0.
        const DOMAINS: i32 = 126;
        let driver = self.driver.functions();
        let count = || self.attribute(DOMAINS).is_ok_and(|count| count > 1);
        self.driver.version() >= 12_000 && driver.cuLaunchKernelEx.is_some() && count()
    }

    /// The value of a `CUdevice_attribute`.
    ///
    /// # Errors
    /// The driver does not know the attribute.
    pub fn attribute(&self, attribute: i32) -> Result<i32, DriverError> {
        let mut value = 0;
        call!(&self.driver, cuDeviceGetAttribute(&mut value, attribute, self.ordinal))?;
        Ok(value)
    }

    /// Bytes of device memory: free, and in all.
    ///
    /// # Errors
    /// The driver fails.
    pub fn memory(&self) -> Result<(usize, usize), DriverError> {
        let (mut free, mut total) = (0, 0);
        call!(&self.current()?, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free, total))
    }

    /// Whether kernels of this device can access the memory of device `peer`, once access is
    /// enabled. The peer gets no context.
    ///
    /// # Errors
    /// There is no such device, or the driver fails.
    pub fn can_access(&self, peer: i32) -> Result<bool, DriverError> {
        let mut can = 0;
        call!(&self.driver, cuDeviceCanAccessPeer(&mut can, self.ordinal, peer))?;
        Ok(can != 0)
    }

    /// Lets kernels of this device access the memory of `peer` from now on. It is no error if the
    /// user has enabled this before.
    ///
    /// # Errors
    /// The devices cannot access each other.
    pub fn enable_access(&self, peer: &Self) -> Result<(), DriverError> {
        match call!(&self.current()?, cuCtxEnablePeerAccess(peer.context, 0)) {
            Err(DriverError::Failed { code: ALREADY_ENABLED, .. }) => Ok(()),
            result => result,
        }
    }

    /// Makes the context current on this thread for the lifetime of the result. This is one call of
    /// the driver if the context is current already.
    ///
    /// # Errors
    /// The driver fails.
    pub fn current(&self) -> Result<CurrentContext<'_>, DriverError> {
        let driver = &*self.driver;
        let mut context = ptr::null_mut();
        call!(driver, cuCtxGetCurrent(&mut context))?;
        let pushed = context != self.context;
        if pushed {
            call!(driver, cuCtxPushCurrent_v2(self.context))?;
        }
        Ok(CurrentContext { driver, pushed })
    }

    /// Whether a stream belongs to the primary context of this device, which is `current`. The
    /// default streams are those of the current context.
    ///
    /// # Errors
    /// The driver fails.
    ///
    /// # Safety
    /// The stream exists, or is one of the default streams.
    pub unsafe fn owns_stream(
        &self,
        current: &CurrentContext<'_>,
        stream: *mut c_void,
    ) -> Result<bool, DriverError> {
        let mut context = ptr::null_mut();
        call!(current.driver, cuStreamGetCtx(stream.cast(), &mut context))?;
        Ok(self.context == context)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure leaks a reference to the context, about which nothing can be done.
        let _ = call!(&self.driver, cuDevicePrimaryCtxRelease_v2(self.ordinal));
    }
}

/// The driver, while the context of a device is current. Its drop restores the previous context.
pub struct CurrentContext<'a> {
    driver: &'a Driver,
    pushed: bool,
}

impl Deref for CurrentContext<'_> {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        self.driver
    }
}

impl Drop for CurrentContext<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = ptr::null_mut();
            // Ours is on top of the stack: the guards of a thread end in the reverse order.
            let _ = call!(self.driver, cuCtxPopCurrent_v2(&mut popped));
        }
    }
}

fn to_string(text: &[c_char]) -> String {
    // SAFETY: the buffer was all zeros, and the driver was given one byte less than its length.
    unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
}
