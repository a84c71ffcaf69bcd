//! The driver and the devices of this process, as far as there are any.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use maypole_cuda::driver::{Device, Driver, DriverError};

use super::gpu::Gpu;
use crate::error::Error;

/// The driver, looked for once per process; None where there is none, or no device that this process may see.
pub(crate) fn driver() -> Result<Option<&'static Arc<Driver>>, Error> {
    static DRIVER: OnceLock<Result<Option<Arc<Driver>>, DriverError>> = OnceLock::new();
    match DRIVER.get_or_init(Driver::find) {
        Ok(driver) => Ok(driver.as_ref()),
        Err(error) => Err(error.clone().into()),
    }
}

/// CUDA devices that this process may see; 0 where there is no driver.
///
/// # Errors
/// A driver that does not work.
pub fn count() -> Result<u32, Error> {
    match driver()? {
        Some(driver) => Ok(driver.devices()?.max(0) as u32),
        None => Ok(0),
    }
}

/// Whether communicators can be made for device `ordinal`: the driver takes the kernels for it. A device that could be used once is not
/// asked again.
///
/// # Errors
/// Why not.
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

/// The device that the calling thread has chosen, if it has: the one whose context is current.
pub fn current() -> Option<i32> {
    let driver = driver().ok()??;
    Device::current_ordinal(driver).ok()?
}
