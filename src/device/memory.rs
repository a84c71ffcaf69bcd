//! Memory of devices for programs, and what an address is.

use std::ffi::c_void;

use maypole_cuda::driver::Device;
use maypole_cuda::memory::{Buffer, Place};

use super::detect::driver;
use crate::error::Error;

/// Device memory; freed when dropped, which waits for all work of the device.
pub struct Allocation {
    buffer: Buffer,
}

impl Allocation {
    /// `bytes` of undefined content in the memory of device `ordinal`; at least one is allocated.
    ///
    /// # Errors
    /// No such device, or no memory.
    pub fn new(ordinal: i32, bytes: usize) -> Result<Self, Error> {
        let Some(driver) = driver()? else {
            let what = format!("there is no CUDA device {ordinal}: this process sees none");
            return Err(Error::InvalidArgument { what });
        };
        let device = Device::open(driver, ordinal)?;
        Ok(Self { buffer: Buffer::new(&device, bytes)? })
    }

    /// The first byte, as the device sees it.
    pub fn address(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.buffer.address() as usize)
    }

    /// Number of the device.
    pub fn device(&self) -> i32 {
        self.buffer.device().ordinal()
    }
}

/// Number of the device whose memory `address` is in; None: memory of the host, pinned or not, or no memory at all. Any number may be
/// asked for.
///
/// # Errors
/// A driver that does not work.
pub fn owner(address: *const c_void) -> Result<Option<i32>, Error> {
    Ok(match place(address)? {
        Some(Place::Device { ordinal, .. }) => Some(ordinal),
        _ => None,
    })
}

/// Whether kernels reach the byte at `address`: it is in the memory of a device, or in memory of the host that is pinned. Managed
/// memory counts as either.
///
/// # Errors
/// A driver that does not work.
pub fn is_known(address: *const c_void) -> Result<bool, Error> {
    Ok(matches!(place(address)?, Some(Place::Device { .. } | Place::Pinned)))
}

fn place(address: *const c_void) -> Result<Option<Place>, Error> {
    let Some(driver) = driver()? else { return Ok(None) };
    Ok(Some(maypole_cuda::memory::place(driver, address.addr() as u64)?))
}
