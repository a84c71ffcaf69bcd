//! Device memory for clients: what `ncclMemAlloc` gives to a thread that has chosen a device.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::config::{Config, DeviceKind};
use maypole::device::{self, Allocation};

use crate::boundary::{failed, invalid};

/// What was allocated and not freed, by address.
static ALLOCATED: LazyLock<Mutex<HashMap<usize, Allocation>>> = LazyLock::new(Mutex::default);

fn allocated() -> MutexGuard<'static, HashMap<usize, Allocation>> {
    ALLOCATED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `size` bytes, not 0, in the memory of the device that this thread has chosen; None if it has chosen none, or `MAYPOLE_DEVICE` is `host`.
pub(crate) fn allocate(size: usize) -> Result<Option<*mut c_void>, ResultCode> {
    if Config::get().device == DeviceKind::Host {
        return Ok(None);
    }
    let Some(ordinal) = device::current() else { return Ok(None) };
    let allocation = Allocation::new(ordinal, size).map_err(|error| {
        log::warn!("ncclMemAlloc of {size} bytes on device {ordinal}: {error}");
        failed(&error)
    })?;
    let address = allocation.address();
    allocated().insert(address.addr(), allocation);
    Ok(Some(address))
}

/// Whether the memory was of a device; it is freed then, when all work of the device is done.
pub(crate) fn free(memory: *mut c_void) -> bool {
    let allocation = allocated().remove(&memory.addr());
    // Not under the lock.
    allocation.is_some()
}

/// Says what registering with a communicator of a device means.
pub(crate) fn note_registration(on: Option<c_int>, buffer: *mut c_void, size: usize) {
    let Some(device) = on else { return };
    log::info!(
        target: "REG",
        "{size} bytes at {buffer:p} are registered, as bookkeeping: kernels of CUDA device {device} use all memory that it reaches in the same way"
    );
}

/// Whether calls on a communicator of that device, or of host memory, can read an element at that address.
pub(crate) fn check_factor(on: Option<c_int>, at: *const u8) -> Result<(), ResultCode> {
    if Config::get().device == DeviceKind::Host {
        return Ok(());
    }
    let owner = device::owner(at.cast()).map_err(|error| failed(&error))?;
    match (on, owner) {
        (None, None) | (Some(_), Some(_)) => Ok(()),
        (None, Some(owner)) => Err(invalid(&format!(
            "ncclRedOpCreatePreMulSum: the scalar is in the memory of CUDA device {owner}, the communicator is of host memory"
        ))),
        (Some(device), None) => match device::is_known(at.cast()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(invalid(&format!(
                "ncclRedOpCreatePreMulSum: the scalar is in pageable memory of the host, which device {device} does not reach; ncclScalarHostImmediate reads it at once"
            ))),
            Err(error) => Err(failed(&error)),
        },
    }
}
