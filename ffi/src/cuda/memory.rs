//! `ncclMemAlloc` on CUDA devices, log lines for registered buffers, and a check of factors.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::config::{Config, DeviceKind};
use maypole::device::{self, DeviceAllocation};
use maypole::stream::PerProcess;

use crate::boundary::{invalid_argument, keep_error};

/// The memory that was allocated and not freed, by address.
static ALLOCATIONS: PerProcess<Mutex<HashMap<usize, DeviceAllocation>>> = PerProcess::new();

/// Allocates `size` bytes, not 0, on the device that this thread has chosen. None if it has chosen
/// none, or if `MAYPOLE_DEVICE` is `host`.
pub(crate) fn allocate(size: usize) -> Result<Option<*mut c_void>, ResultCode> {
    if Config::get().device == DeviceKind::Host {
        return Ok(None);
    }
    let Some(device) = device::current() else { return Ok(None) };
    let allocation = DeviceAllocation::new(device, size).map_err(|error| {
        log::warn!("ncclMemAlloc of {size} bytes on device {device}: {error}");
        keep_error(&error)
    })?;
    let address = allocation.address();
    allocations().insert(address.addr(), allocation);
    Ok(Some(address))
}

/// Frees memory of a device after all work of the device. False if the memory is none of these.
pub(crate) fn free(memory: *mut c_void) -> bool {
    let allocation = allocations().remove(&memory.addr());
    // The allocation is dropped here, without the lock.
    allocation.is_some()
}

/// Logs what a registration with a communicator of that device means.
pub(crate) fn log_registration(device: Option<c_int>, buffer: *mut c_void, size: usize) {
    let Some(device) = device else { return };
    log::info!(
        target: "REG",
        "{size} bytes at {buffer:p} are registered, as bookkeeping: kernels of CUDA device \
         {device} use all memory that it reaches in the same way"
    );
}

/// Refuses an address at which calls on that device, or on host memory, cannot read an element.
pub(crate) fn check_factor(device: Option<c_int>, address: *const u8) -> Result<(), ResultCode> {
    if Config::get().device == DeviceKind::Host {
        return Ok(());
    }
    let owner = device::device_of(address.cast()).map_err(|error| keep_error(&error))?;
    match (device, owner) {
        (None, None) | (Some(_), Some(_)) => Ok(()),
        (None, Some(owner)) => Err(invalid_argument(&format!(
            "ncclRedOpCreatePreMulSum: the scalar is in the memory of CUDA device {owner}, but the \
             communicator works on host memory"
        ))),
        (Some(device), None) => match device::is_reachable(address.cast()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(invalid_argument(&format!(
                "ncclRedOpCreatePreMulSum: the scalar is in pageable memory of the host, which \
                 device {device} does not reach; with ncclScalarHostImmediate it is read at once"
            ))),
            Err(error) => Err(keep_error(&error)),
        },
    }
}

fn allocations() -> MutexGuard<'static, HashMap<usize, DeviceAllocation>> {
    ALLOCATIONS.get().lock().unwrap_or_else(PoisonError::into_inner)
}
