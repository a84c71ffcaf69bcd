//! Memory: `ncclMemAlloc`, registered buffers, and what a communicator holds.
//!
//! What is allocated here for the host is memory that processes of the host read in place (`maypole::memory`). Registering it lets them map it
//! ahead of its first use; registering other memory is bookkeeping, as links copy from any memory.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::memory::SharedBuffer;

use crate::boundary::{NcclResult, answer, failed, invalid, refuse};
use crate::cuda;
use crate::export::abi;
use crate::identity::put;
use crate::registry::{self, Handle, Stage};

/// `NCCL_SUSPEND_MEM`
const SUSPEND_MEMORY: c_int = 1;

/// What was allocated and not freed, by address.
static ALLOCATED: LazyLock<Mutex<HashMap<usize, SharedBuffer>>> = LazyLock::new(Mutex::default);

fn allocated() -> MutexGuard<'static, HashMap<usize, SharedBuffer>> {
    ALLOCATED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The buffers registered with a communicator, by handle.
#[derive(Default)]
pub(crate) struct Registrations {
    live: HashMap<usize, (usize, usize)>,
    made: usize,
}

impl Registrations {
    /// A handle for `size` bytes at `at`: never NULL, never given twice.
    fn add(&mut self, at: usize, size: usize) -> *mut c_void {
        self.made += 1;
        self.live.insert(self.made, (at, size));
        std::ptr::without_provenance_mut(self.made << 4)
    }

    fn remove(&mut self, handle: *mut c_void) -> Result<(), ResultCode> {
        let number = handle.addr() >> 4;
        let known = handle.addr() & 0xf == 0 && self.live.remove(&number).is_some();
        if known {
            Ok(())
        } else {
            Err(invalid("the handle is not of a buffer registered with this communicator"))
        }
    }
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
    allocated().insert(memory.addr(), buffer);
    Ok(memory.cast())
}

abi! {
    /// `ncclMemAlloc`
    fn ncclMemAlloc(out: *mut *mut c_void, size: usize) -> NcclResult {
        answer(|| put("ncclMemAlloc", out, || allocate(size)))
    }

    /// `ncclMemFree`
    fn ncclMemFree(memory: *mut c_void) -> NcclResult {
        answer(|| {
            if memory.is_null() || cuda::free(memory) {
                return Ok(());
            }
            let buffer = allocated().remove(&memory.addr());
            buffer.map(drop).ok_or_else(|| {
                invalid("ncclMemFree: the memory is not from ncclMemAlloc, or was freed")
            })
        })
    }

    /// `ncclCommRegister`: of memory of [`ncclMemAlloc`] so that peers of the host have it mapped before its first use.
    fn ncclCommRegister(comm: Handle, buffer: *mut c_void, size: usize, handle: *mut *mut c_void) -> NcclResult {
        answer(|| {
            put("ncclCommRegister", handle, || {
                let mut entered = registry::enter(comm)?;
                if buffer.is_null() || size == 0 {
                    return Err(invalid("ncclCommRegister: the buffer is NULL or of no bytes"));
                }
                cuda::note_registration(entered.device, buffer, size);
                let mapped = entered.comm.register(buffer.cast(), size);
                mapped.map_err(|error| failed(&error))?;
                Ok(entered.registrations.add(buffer.addr(), size))
            })
        })
    }

    /// `ncclCommDeregister`
    fn ncclCommDeregister(comm: Handle, handle: *mut c_void) -> NcclResult {
        answer(|| {
            let mut entered = registry::enter(comm)?;
            if handle.is_null() { Ok(()) } else { entered.registrations.remove(handle) }
        })
    }

    /// `ncclCommSuspend`: gives back what the communicator can do without until [`ncclCommResume`]; links stay.
    fn ncclCommSuspend(comm: Handle, flags: c_int) -> NcclResult {
        answer(|| {
            let mut entered = registry::enter(comm)?;
            if flags != SUSPEND_MEMORY {
                return Err(invalid(&format!("ncclCommSuspend: flags {flags:#x}; there is only NCCL_SUSPEND_MEM")));
            }
            match entered.stage {
                Stage::Open => {
                    entered.comm.release_memory();
                    entered.stage = Stage::Suspended;
                    Ok(())
                }
                stage => Err(refuse(
                    ResultCode::InvalidUsage,
                    &format!("ncclCommSuspend: the communicator is {}", stage.name()),
                )),
            }
        })
    }

    /// `ncclCommResume`: memory comes back as calls need it.
    fn ncclCommResume(comm: Handle) -> NcclResult {
        answer(|| {
            let mut entered = registry::enter(comm)?;
            match entered.stage {
                Stage::Suspended => {
                    entered.stage = Stage::Open;
                    Ok(())
                }
                _ => Err(refuse(
                    ResultCode::InvalidUsage,
                    "ncclCommResume: the communicator is not suspended",
                )),
            }
        })
    }

    /// `ncclCommMemStats`: memory of the device, or of the host where the communicator is for that, in bytes.
    fn ncclCommMemStats(comm: Handle, statistic: c_int, value: *mut u64) -> NcclResult {
        answer(|| {
            put("ncclCommMemStats", value, || {
                let entered = registry::enter(comm)?;
                let memory = entered.comm.memory();
                // Of the kind of memory that the communicator is for.
                let lasting = entered.device.map_or(memory.lasting, |_| memory.device);
                match statistic {
                    0 => Ok(memory.releasable as u64),
                    1 => Ok(u64::from(entered.stage == Stage::Suspended)),
                    2 => Ok(lasting as u64),
                    3 => Ok((memory.releasable + lasting) as u64),
                    _ => Err(invalid(&format!("ncclCommMemStats: there is no statistic {statistic}"))),
                }
            })
        })
    }
}
