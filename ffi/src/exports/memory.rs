//! Memory: `ncclMemAlloc`, registered buffers, suspend and resume, and how much a communicator
//! holds.
//!
//! What `ncclMemAlloc` allocates on the host is memory that other processes of the host can map and
//! read in place (`maypole::memory`). To register it lets them map it before its first use. To
//! register other memory is bookkeeping, as links copy from any memory.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::memory::SharedBuffer;
use maypole::stream::PerProcess;

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument, keep_error, refuse, write_result};
use crate::cuda;
use crate::registry::{self, CommHandle, CommStage};

/// `NCCL_SUSPEND_MEM`
const SUSPEND_MEMORY: c_int = 1;

/// The host memory that was allocated and not freed, by address.
static HOST_BUFFERS: PerProcess<Mutex<HashMap<usize, SharedBuffer>>> = PerProcess::new();

fn host_buffers() -> MutexGuard<'static, HashMap<usize, SharedBuffer>> {
    HOST_BUFFERS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

fn allocate(size: usize) -> Result<*mut c_void, ResultCode> {
    if size == 0 {
        return Ok(std::ptr::null_mut());
    }
    if let Some(memory) = cuda::allocate(size)? {
        return Ok(memory);
    }
    let mut buffer = SharedBuffer::new(size).map_err(|error| {
        refuse(
            ResultCode::SystemError,
            &format!("ncclMemAlloc: no memory for {size} bytes: {error}"),
        )
    })?;
    let memory = buffer.as_mut_ptr();
    host_buffers().insert(memory.addr(), buffer);
    Ok(memory.cast())
}

abi! {
    /// `ncclMemAlloc`: memory of the device that the calling thread has chosen, else of the host.
    fn ncclMemAlloc(out: *mut *mut c_void, size: usize) -> NcclResult {
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("ncclMemAlloc", out, || allocate(size)) })
    }

    /// `ncclMemFree`
    fn ncclMemFree(memory: *mut c_void) -> NcclResult {
        guarded(|| {
            if memory.is_null() || cuda::free(memory) {
                return Ok(());
            }
            let buffer = host_buffers().remove(&memory.addr());
            buffer.map(drop).ok_or_else(|| {
                invalid_argument("ncclMemFree: the memory is not from ncclMemAlloc, or was freed")
            })
        })
    }

    /// `ncclCommRegister`: peers of the host map memory of [`ncclMemAlloc`] before its first use.
    fn ncclCommRegister(
        comm: CommHandle,
        buffer: *mut c_void,
        size: usize,
        handle: *mut *mut c_void,
    ) -> NcclResult {
        let register = || {
            let mut comm = registry::acquire_exclusive(comm)?;
            if buffer.is_null() || size == 0 {
                return Err(invalid_argument(
                    "ncclCommRegister: the buffer is NULL or of no bytes",
                ));
            }
            cuda::log_registration(comm.device, buffer, size);
            let mapped = comm.comm.register(buffer.cast(), size);
            mapped.map_err(|error| keep_error(&error))?;
            Ok(comm.buffers.add(buffer.addr(), size))
        };
        // SAFETY: the client promised that `handle` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommRegister", handle, register) })
    }

    /// `ncclCommDeregister`
    fn ncclCommDeregister(comm: CommHandle, handle: *mut c_void) -> NcclResult {
        guarded(|| {
            let mut comm = registry::acquire_exclusive(comm)?;
            if handle.is_null() { Ok(()) } else { comm.buffers.remove(handle) }
        })
    }

    /// `ncclCommSuspend`: gives memory back that the communicator does not need until
    /// [`ncclCommResume`]. Links stay.
    fn ncclCommSuspend(comm: CommHandle, flags: c_int) -> NcclResult {
        guarded(|| {
            let mut comm = registry::acquire_exclusive(comm)?;
            if flags != SUSPEND_MEMORY {
                return Err(invalid_argument(&format!(
                    "ncclCommSuspend: flags {flags:#x}; only NCCL_SUSPEND_MEM is supported"
                )));
            }
            match comm.stage {
                CommStage::Open => {
                    comm.comm.release_memory();
                    comm.stage = CommStage::Suspended;
                    Ok(())
                }
                stage => Err(refuse(
                    ResultCode::InvalidUsage,
                    &format!("ncclCommSuspend: the communicator is {}", stage.name()),
                )),
            }
        })
    }

    /// `ncclCommResume`: calls get memory again as they need it.
    fn ncclCommResume(comm: CommHandle) -> NcclResult {
        guarded(|| {
            let mut comm = registry::acquire_exclusive(comm)?;
            match comm.stage {
                CommStage::Suspended => {
                    comm.stage = CommStage::Open;
                    Ok(())
                }
                _ => Err(refuse(
                    ResultCode::InvalidUsage,
                    "ncclCommResume: the communicator is not suspended",
                )),
            }
        })
    }

    /// `ncclCommMemStats`: the bytes that the communicator holds, of its device or of the host.
    fn ncclCommMemStats(comm: CommHandle, statistic: c_int, value: *mut u64) -> NcclResult {
        let read = || {
            let comm = registry::acquire_exclusive(comm)?;
            let memory = comm.comm.memory();
            let persistent = if comm.device.is_some() { memory.device } else { memory.lasting };
            match statistic {
                0 => Ok(memory.releasable as u64),
                1 => Ok(u64::from(comm.stage == CommStage::Suspended)),
                2 => Ok(persistent as u64),
                3 => Ok((memory.releasable + persistent) as u64),
                _ => Err(invalid_argument(&format!(
                    "ncclCommMemStats: {statistic} is not an ncclCommMemStat_t"
                ))),
            }
        };
        // SAFETY: the client promised that `value` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommMemStats", value, read) })
    }
}
