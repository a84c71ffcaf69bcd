//! The CUDA devices that this process sees, and which of them communicators can use.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use maypole_cuda::driver::{Device, Driver};

use super::gpu::Gpu;
use crate::error::Error;

/// The number of CUDA devices that this process sees; 0 if there is no driver.
///
/// # Errors
/// The driver does not work.
pub fn count() -> Result<u32, Error> {
    match Driver::shared()? {
        Some(driver) => Ok(driver.devices()?.max(0) as u32),
        None => Ok(0),
    }
}

/// Checks that communicators can use device `ordinal`: that the driver loads the kernels for it.
/// A device that has passed once is not checked again.
///
/// # Errors
/// The reason why the device cannot be used.
pub fn check(ordinal: i32) -> Result<(), Error> {
    static USABLE: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
    let usable = || USABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if usable().contains(&ordinal) {
        return Ok(());
    }
    Gpu::open(ordinal)?;
    usable().insert(ordinal);
    Ok(())
}

/// The number of the device whose context is current on the calling thread, if there is one.
pub fn current() -> Option<i32> {
    let driver = Driver::shared().ok()??;
    Device::current_ordinal(driver).ok()?
}
