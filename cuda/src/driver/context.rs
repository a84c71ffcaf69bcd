//! Devices and their primary contexts.

use super::functions::call;
use super::{Driver, DriverError, Handle};
use std::ffi::{CStr, c_char, c_int};
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

const MULTIPROCESSOR_COUNT: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED.
const ALREADY_ENABLED: i32 = 704;

/// A device and its primary context.
pub struct Device {
    driver: Arc<Driver>,
    ordinal: c_int,
    context: Handle,
}

// SAFETY: a primary context may be made current on, and used from, any number of threads.
unsafe impl Send for Device {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Device {}

impl Device {
    /// Device `ordinal` of those visible.
    pub fn open(driver: &Arc<Driver>, ordinal: i32) -> Result<Arc<Self>, DriverError> {
        let mut device = 0;
        call!(driver, cuDeviceGet(&mut device, ordinal))?;
        let mut context = ptr::null_mut();
        call!(driver, cuDevicePrimaryCtxRetain(&mut context, device))?;
        Ok(Arc::new(Self { driver: driver.clone(), ordinal: device, context }))
    }

    /// The device whose context is current on this thread; None if there is none.
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

    /// Its number among those visible.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// The driver that has it.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// As the vendor calls it.
    pub fn name(&self) -> Result<String, DriverError> {
        let mut text = [0 as c_char; 256];
        call!(&self.driver, cuDeviceGetName(text.as_mut_ptr(), 255, self.ordinal))?;
        Ok(text_of(&text))
    }

    /// domain:bus:device.function in hexadecimal, as in /sys/bus/pci/devices.
    pub fn pci_bus_id(&self) -> Result<String, DriverError> {
        let mut text = [0 as c_char; 64];
        call!(&self.driver, cuDeviceGetPCIBusId(text.as_mut_ptr(), 63, self.ordinal))?;
        Ok(text_of(&text).to_lowercase())
    }

    /// The same for every process that sees the device; of its partition where it is partitioned and the driver tells (11.4).
    pub fn uuid(&self) -> Result<[u8; 16], DriverError> {
        let mut uuid = [0; 16];
        match call!(&self.driver, cuDeviceGetUuid_v2(&mut uuid, self.ordinal)) {
            Err(DriverError::NoFunction { .. }) => {
                call!(&self.driver, cuDeviceGetUuid(&mut uuid, self.ordinal))?;
            }
            result => result?,
        }
        Ok(uuid)
    }

    /// Major and minor number of the compute capability: (9, 0) is sm_90.
    pub fn capability(&self) -> Result<(u32, u32), DriverError> {
        Ok((self.attribute(CAPABILITY_MAJOR)? as u32, self.attribute(CAPABILITY_MINOR)? as u32))
    }

    /// Number of multiprocessors: as many blocks of the interpreter are resident for certain.
    pub fn multiprocessors(&self) -> Result<u32, DriverError> {
        Ok(self.attribute(MULTIPROCESSOR_COUNT)? as u32)
    }

    /// A CUdevice_attribute by its number.
    pub fn attribute(&self, attribute: i32) -> Result<i32, DriverError> {
        let mut value = 0;
        call!(&self.driver, cuDeviceGetAttribute(&mut value, attribute, self.ordinal))?;
        Ok(value)
    }

    /// Bytes of device memory: free, and in all.
    pub fn memory(&self) -> Result<(usize, usize), DriverError> {
        let (mut free, mut total) = (0, 0);
        call!(&self.current()?, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free, total))
    }

    /// True if kernels of this device could reach the memory of `peer`.
    pub fn can_access(&self, peer: &Self) -> Result<bool, DriverError> {
        let mut can = 0;
        call!(&self.driver, cuDeviceCanAccessPeer(&mut can, self.ordinal, peer.ordinal))?;
        Ok(can != 0)
    }

    /// From now on kernels of this device reach the memory of `peer`. The user may have asked for it before: that is no error.
    pub fn enable_access(&self, peer: &Self) -> Result<(), DriverError> {
        match call!(&self.current()?, cuCtxEnablePeerAccess(peer.context, 0)) {
            Err(DriverError::Failed { code: ALREADY_ENABLED, .. }) => Ok(()),
            result => result,
        }
    }

    /// Makes the context current on this thread while the value lives; one call of the driver where it is already.
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

    /// True if `context` is this device's.
    pub(crate) fn has(&self, context: Handle) -> bool {
        self.context == context
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure leaves a reference to the context: nothing that anyone could act on.
        let _ = call!(&self.driver, cuDevicePrimaryCtxRelease_v2(self.ordinal));
    }
}

/// The driver, while a context is current. Restores the one that was current before.
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
            let mut ours = ptr::null_mut();
            // It is on top: the guards of a thread end in the opposite order of their beginning.
            let _ = call!(self.driver, cuCtxPopCurrent_v2(&mut ours));
        }
    }
}

fn text_of(text: &[c_char]) -> String {
    // SAFETY: the driver was told one byte less than there are, all of which were zero.
    unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
}
