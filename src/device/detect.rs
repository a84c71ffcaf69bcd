//! The driver and the devices of this process, as far as there are any.

use std::sync::{Arc, OnceLock};

use maypole_cuda::driver::{Device, Driver, DriverError};

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

/// Whether communicators can be made for device `ordinal`.
///
/// # Errors
/// Why not.
pub fn check(ordinal: i32) -> Result<(), Error> {
    match driver()? {
        Some(driver) => Ok(Device::open(driver, ordinal).map(drop)?),
        None => Err(Error::InvalidArgument {
            what: format!("there is no CUDA device {ordinal}: this process sees none"),
        }),
    }
}

/// The device that the calling thread has chosen, if it has: the one whose context is current.
pub fn current() -> Option<i32> {
    let driver = driver().ok()??;
    Device::current_ordinal(driver).ok()?
}
