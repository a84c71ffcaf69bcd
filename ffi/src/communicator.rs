//! The life of a communicator: unique ids, initialisation, questions, and its ends.

use std::ffi::{c_char, c_int, c_void};
use std::time::{Duration, Instant};

use maypole::error::ResultCode;
use maypole::{Communicator, UniqueId, logger};

use crate::answer::{NcclResult, answer, failed, invalid, refuse};
use crate::group;
use crate::registry::{self, Handle};

/// The version of NCCL whose interface this is: 2.32.3.
const VERSION: c_int = 23203;

/// How long an aborted call may take to return. Every wait ends within a fraction of a second.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);

/// `ncclUniqueId`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct NcclUniqueId {
    internal: [c_char; 128],
}

/// A checked `ncclCommInitRank`.
pub(crate) struct Initialisation {
    comm: *mut Handle,
    id: UniqueId,
    nranks: u32,
    rank: u32,
}

// SAFETY: the client promised `comm` to be writable until the group's end, whatever the thread, and no other thread uses it.
unsafe impl Send for Initialisation {}

impl Initialisation {
    /// Joins the other ranks and hands out the handle.
    pub(crate) fn run(self) -> Result<(), ResultCode> {
        let Self { comm, id, nranks, rank } = self;
        let joined = Communicator::init(&id, nranks, rank).map_err(|error| failed(&error))?;
        let handle = registry::admit(joined)?;
        // SAFETY: the client's promise.
        unsafe { comm.write(handle) };
        Ok(())
    }
}

/// `ncclGetVersion`
///
/// # Safety
/// `version` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> NcclResult {
    answer(|| put("ncclGetVersion", version, || Ok(VERSION)))
}

/// `ncclGetUniqueId`
///
/// # Safety
/// `id` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut NcclUniqueId) -> NcclResult {
    answer(|| {
        logger::install();
        put("ncclGetUniqueId", id, || {
            let id = UniqueId::create().map_err(|error| failed(&error.into()))?;
            Ok(NcclUniqueId { internal: id.to_bytes().map(|byte| byte as c_char) })
        })
    })
}

/// `ncclCommInitRank`
///
/// # Safety
/// `comm` is NULL or writable, until the call, or its group, has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    comm: *mut Handle,
    nranks: c_int,
    id: NcclUniqueId,
    rank: c_int,
) -> NcclResult {
    answer(|| {
        logger::install();
        let initialisation = match check(comm, nranks, id, rank) {
            Ok(initialisation) => initialisation,
            Err(code) => return group::note(Err(code)),
        };
        if group::is_open() {
            group::queue_initialisation(initialisation);
            return Ok(());
        }
        initialisation.run()
    })
}

fn check(
    comm: *mut Handle,
    nranks: c_int,
    id: NcclUniqueId,
    rank: c_int,
) -> Result<Initialisation, ResultCode> {
    if comm.is_null() {
        return Err(invalid("ncclCommInitRank: comm is NULL"));
    }
    if nranks < 1 || !(0..nranks).contains(&rank) {
        return Err(invalid(&format!("ncclCommInitRank: rank {rank} of {nranks}")));
    }
    let id = UniqueId::from_bytes(id.internal.map(|byte| byte as u8))
        .map_err(|error| failed(&error.into()))?;
    Ok(Initialisation { comm, id, nranks: nranks as u32, rank: rank as u32 })
}

/// `ncclCommCount`
///
/// # Safety
/// `count` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(comm: Handle, count: *mut c_int) -> NcclResult {
    answer(|| put("ncclCommCount", count, || Ok(registry::identity(comm)?.1 as c_int)))
}

/// `ncclCommUserRank`
///
/// # Safety
/// `rank` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(comm: Handle, rank: *mut c_int) -> NcclResult {
    answer(|| put("ncclCommUserRank", rank, || Ok(registry::identity(comm)?.0 as c_int)))
}

/// `ncclCommCuDevice`: -1, there is no device.
///
/// # Safety
/// `device` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(comm: Handle, device: *mut c_int) -> NcclResult {
    answer(|| put("ncclCommCuDevice", device, || registry::identity(comm).map(|_| -1)))
}

/// `ncclCommGetAsyncError`
///
/// # Safety
/// `error` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: Handle, error: *mut NcclResult) -> NcclResult {
    answer(|| {
        put("ncclCommGetAsyncError", error, || {
            // A call that is under way on another thread will return its error itself.
            if registry::is_busy(comm)? {
                return Ok(ResultCode::Success as c_int);
            }
            let state = registry::enter(comm)?.comm.async_error();
            Ok(state.map_or(ResultCode::Success, |error| error.code()) as c_int)
        })
    })
}

/// `ncclCommFinalize`: calls are over when they return, so there is nothing to wait for.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommFinalize(comm: Handle) -> NcclResult {
    answer(|| {
        if comm.is_null() {
            return Ok(());
        }
        match std::mem::replace(&mut registry::enter(comm)?.finalized, true) {
            false => Ok(()),
            true => Err(invalid("ncclCommFinalize: the communicator was finalized before")),
        }
    })
}

/// `ncclCommDestroy`
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommDestroy(comm: Handle) -> NcclResult {
    answer(|| {
        if !comm.is_null() {
            drop(registry::enter(comm)?.evict());
        }
        Ok(())
    })
}

/// `ncclCommAbort`: from any thread; a call that is under way on another one ends with an error first.
#[unsafe(no_mangle)]
pub extern "C" fn ncclCommAbort(comm: *mut c_void) -> NcclResult {
    answer(|| {
        if comm.is_null() {
            return Ok(());
        }
        registry::abort_handle(comm)?.abort();
        let start = Instant::now();
        while registry::is_busy(comm)? {
            if start.elapsed() > ABORT_PATIENCE {
                let text = "ncclCommAbort: a call of another thread does not end";
                return Err(refuse(ResultCode::InternalError, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(registry::enter(comm)?.evict());
        Ok(())
    })
}

/// Writes what `value` gives to `out`, which must not be NULL.
fn put<T>(
    function: &str,
    out: *mut T,
    value: impl FnOnce() -> Result<T, ResultCode>,
) -> Result<(), ResultCode> {
    if out.is_null() {
        return Err(invalid(&format!("{function}: the place for the result is NULL")));
    }
    let value = value()?;
    // SAFETY: the client promised `out` to be writable if it is not NULL.
    unsafe { out.write(value) };
    Ok(())
}
