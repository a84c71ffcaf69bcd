//! The CUDA devices that this process sees, and which of them communicators can use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole_cuda::driver::{Device, Driver, runtime};

use super::gpu::Gpu;
use crate::error::Error;
use crate::process::PerProcess;

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

/// The devices that have passed the check, each with its kernels until a communicator uses it.
static CHECKED: PerProcess<Mutex<BTreeMap<i32, Option<Arc<Gpu>>>>> = PerProcess::new();

fn checked() -> MutexGuard<'static, BTreeMap<i32, Option<Arc<Gpu>>>> {
    // A thread that panicked cannot have left the map half changed.
    CHECKED.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks that communicators can use device `ordinal`: that the driver loads the kernels for it.
/// They stay loaded for the communicator that the check was for, since the driver may have to
/// compile them. A device that has passed once is not checked again.
///
/// # Errors
/// The reason why the device cannot be used.
pub fn check(ordinal: i32) -> Result<(), Error> {
    if checked().contains_key(&ordinal) {
        return Ok(());
    }
    let gpu = Gpu::open(ordinal)?;
    checked().insert(ordinal, Some(gpu));
    Ok(())
}

/// Opens device `ordinal` for a communicator.
///
/// # Errors
/// There is no such device, or it cannot run the kernels.
pub(crate) fn open(ordinal: i32) -> Result<Arc<Gpu>, Error> {
    let gpu = Gpu::open(ordinal)?;
    if let Some(kept) = checked().get_mut(&ordinal) {
        *kept = None;
    }
    Ok(gpu)
}

/// The number of the device that the calling thread has chosen: whose context is current on it, or
/// which `cudaSetDevice` of a CUDA runtime before 12.0 has named, which makes no context. `None` if
/// it has chosen none, or perhaps device 0 by such a runtime.
pub fn current() -> Option<i32> {
    let driver = Driver::shared().ok()??;
    match Device::current_ordinal(driver).ok()? {
        Some(ordinal) => Some(ordinal),
        // Without a context the runtime answers 0 if the thread has chosen no device.
        None => runtime::chosen_device()
            .filter(|ordinal| (1..driver.devices().unwrap_or(0)).contains(ordinal)),
    }
}
