//! Allocates device memory for programs, and finds the device of an address.

use std::ffi::c_void;

use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::memory::{AddressKind, DeviceBuffer, address_kind};

use crate::error::Error;

/// Device memory. It is freed on drop, which waits for all work of the device.
pub struct DeviceAllocation {
    buffer: DeviceBuffer,
}

impl DeviceAllocation {
    /// Allocates `bytes` (at least one) of undefined content on device `ordinal`.
    ///
    /// # Errors
    /// There is no such device, or it has no memory left.
    pub fn new(ordinal: i32, bytes: usize) -> Result<Self, Error> {
        let Some(driver) = Driver::shared()? else {
            let what = format!("there is no CUDA device {ordinal}: this process sees none");
            return Err(Error::InvalidArgument { what });
        };
        let device = Device::open(driver, ordinal)?;
        Ok(Self { buffer: DeviceBuffer::new(&device, bytes)? })
    }

    /// The address of the first byte, as the device sees it.
    pub fn address(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.buffer.address() as usize)
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The number of the device.
    pub fn device(&self) -> i32 {
        self.buffer.device().ordinal()
    }
}

/// The number of the device whose memory holds `address`. `None` means host memory, pinned or not,
/// or no memory at all; any number may be passed.
///
/// # Errors
/// The driver does not work.
pub fn device_of(address: *const c_void) -> Result<Option<i32>, Error> {
    Ok(match kind(address)? {
        Some(AddressKind::Device { ordinal, .. }) => Some(ordinal),
        _ => None,
    })
}

/// Whether kernels reach the byte at `address`: it is in device memory or in pinned host memory.
/// Managed memory counts as either.
///
/// # Errors
/// The driver does not work.
pub fn is_reachable(address: *const c_void) -> Result<bool, Error> {
    Ok(matches!(kind(address)?, Some(AddressKind::Device { .. } | AddressKind::Pinned)))
}

fn kind(address: *const c_void) -> Result<Option<AddressKind>, Error> {
    let Some(driver) = Driver::shared()? else { return Ok(None) };
    Ok(Some(address_kind(driver, address.addr() as u64)?))
}
