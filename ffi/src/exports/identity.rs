//! The version, unique ids, and the rank, size, device and error state of a communicator.

use std::ffi::c_int;

use maypole::internal::logger;

use super::macros::abi;
use super::unique_id;
use crate::boundary::{NcclResult, guarded, write_result};
use crate::layout::{NcclUniqueId, VERSION};
use crate::registry::{self, CommHandle};

abi! {
    /// `ncclGetVersion`: the version of NCCL whose interface this is.
    fn ncclGetVersion(version: *mut c_int) -> NcclResult {
        // SAFETY: the client promised that `version` is NULL or writable.
        guarded(|| unsafe { write_result("ncclGetVersion", version, || Ok(VERSION)) })
    }

    /// `ncclGetUniqueId`: starts a bootstrap root in this process.
    fn ncclGetUniqueId(id: *mut NcclUniqueId) -> NcclResult {
        guarded(|| {
            logger::install();
            // SAFETY: the client promised that `id` is NULL or writable.
            unsafe { write_result("ncclGetUniqueId", id, unique_id::create) }
        })
    }

    /// `ncclCommCount`: the number of ranks.
    fn ncclCommCount(comm: CommHandle, count: *mut c_int) -> NcclResult {
        let nranks = || {
            registry::check_ready(comm)?;
            Ok(registry::identity(comm)?.1 as c_int)
        };
        // SAFETY: the client promised that `count` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommCount", count, nranks) })
    }

    /// `ncclCommUserRank`: the rank.
    fn ncclCommUserRank(comm: CommHandle, rank: *mut c_int) -> NcclResult {
        let own = || {
            registry::check_ready(comm)?;
            Ok(registry::identity(comm)?.0 as c_int)
        };
        // SAFETY: the client promised that `rank` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommUserRank", rank, own) })
    }

    /// `ncclCommCuDevice`: the number of the CUDA device; on host memory the number given to
    /// `ncclCommInitAll`, else -1.
    fn ncclCommCuDevice(comm: CommHandle, device: *mut c_int) -> NcclResult {
        let number = || {
            registry::check_ready(comm)?;
            registry::device(comm)
        };
        // SAFETY: the client promised that `device` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommCuDevice", device, number) })
    }

    /// `ncclCommGetAsyncError`: the state of the communicator. Never waits.
    fn ncclCommGetAsyncError(comm: CommHandle, error: *mut NcclResult) -> NcclResult {
        let result = || Ok(registry::async_result(comm)? as c_int);
        // SAFETY: the client promised that `error` is NULL or writable.
        guarded(|| unsafe { write_result("ncclCommGetAsyncError", error, result) })
    }
}
