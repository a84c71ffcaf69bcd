//! Which version this is, unique ids, and what a communicator says of itself.

use std::ffi::{c_char, c_int};

use maypole::ResultCode;
use maypole::UniqueId;
use maypole::internal::logger;

use crate::boundary::{NcclResult, answer, decided, invalid};
use crate::export::abi;
use crate::layout::NcclUniqueId;
use crate::registry::{self, Handle};

/// The version of NCCL whose interface this is: 2.32.3.
pub(crate) const VERSION: c_int = 23203;

/// The id in the client's bytes.
pub(crate) fn unique_id(id: &NcclUniqueId) -> Result<UniqueId, ResultCode> {
    UniqueId::from_bytes(id.internal.map(|byte| byte as u8)).map_err(|error| decided(&error.into()))
}

/// A new id in the client's form; its root runs in this process.
pub(crate) fn new_unique_id() -> Result<NcclUniqueId, ResultCode> {
    let id = UniqueId::create().map_err(|error| decided(&error.into()))?;
    Ok(NcclUniqueId { internal: id.to_bytes().map(|byte| byte as c_char) })
}

/// Writes what `value` gives to `out`, which must not be NULL.
pub(crate) fn put<T>(
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

abi! {
    /// `ncclGetVersion`
    fn ncclGetVersion(version: *mut c_int) -> NcclResult {
        answer(|| put("ncclGetVersion", version, || Ok(VERSION)))
    }

    /// `ncclGetUniqueId`
    fn ncclGetUniqueId(id: *mut NcclUniqueId) -> NcclResult {
        answer(|| {
            logger::install();
            put("ncclGetUniqueId", id, new_unique_id)
        })
    }

    /// `ncclCommCount`
    fn ncclCommCount(comm: Handle, count: *mut c_int) -> NcclResult {
        answer(|| put("ncclCommCount", count, || Ok(registry::identity(comm)?.1 as c_int)))
    }

    /// `ncclCommUserRank`
    fn ncclCommUserRank(comm: Handle, rank: *mut c_int) -> NcclResult {
        answer(|| put("ncclCommUserRank", rank, || Ok(registry::identity(comm)?.0 as c_int)))
    }

    /// `ncclCommCuDevice`; of a communicator of host memory the number given to `ncclCommInitAll`, else -1.
    fn ncclCommCuDevice(comm: Handle, device: *mut c_int) -> NcclResult {
        answer(|| put("ncclCommCuDevice", device, || registry::device(comm)))
    }

    /// `ncclCommGetAsyncError`
    fn ncclCommGetAsyncError(comm: Handle, error: *mut NcclResult) -> NcclResult {
        answer(|| {
            put("ncclCommGetAsyncError", error, || Ok(registry::async_result(comm)? as c_int))
        })
    }
}
