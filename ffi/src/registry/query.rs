//! What every thread may ask about a communicator at any time, also while another thread uses it.

use std::ffi::c_int;

use maypole::ResultCode;
use maypole::internal::handle_state::Tenancy;
use maypole::internal::sync::Ordering;
use maypole::{AbortHandle, Error};

use super::access::unusable;
use super::entry::{EntryRef, EntryStatus, not_live};
use super::handle::CommHandle;
use crate::boundary::log_error;

/// Rank and number of ranks.
pub(crate) fn identity(handle: CommHandle) -> Result<(u32, u32), ResultCode> {
    let found = EntryRef::find(handle)?;
    let entry = found.entry;
    let identity = (entry.rank.load(Ordering::Acquire), entry.nranks.load(Ordering::Acquire));
    // The look comes after the loads: what was loaded is of this generation.
    match found.look() {
        Tenancy::Idle | Tenancy::InUse => Ok(identity),
        tenancy => Err(unusable(entry, tenancy)),
    }
}

/// Refuses a query about a communicator on which a call is in progress, as NCCL does.
pub(crate) fn check_ready(handle: CommHandle) -> Result<(), ResultCode> {
    let found = EntryRef::find(handle)?;
    let in_progress = with_status(handle, |status| status.result == ResultCode::InProgress)?;
    if in_progress { Err(unusable(found.entry, found.look())) } else { Ok(()) }
}

/// The result of `ncclCommCuDevice`.
pub(crate) fn device(handle: CommHandle) -> Result<c_int, ResultCode> {
    with_status(handle, |status| status.device)
}

/// Whether it works on a CUDA device.
pub(crate) fn is_on_device(handle: CommHandle) -> Result<bool, ResultCode> {
    with_status(handle, |status| status.on_device)
}

/// Whether calls on it return when they are done.
pub(crate) fn is_blocking(handle: CommHandle) -> Result<bool, ResultCode> {
    with_status(handle, |status| status.blocking)
}

/// The result of `ncclCommGetAsyncError`. Never waits for a call that runs.
pub(crate) fn async_result(handle: CommHandle) -> Result<ResultCode, ResultCode> {
    with_status(handle, |status| match (status.result, &status.call_stream) {
        (result @ (ResultCode::Success | ResultCode::InvalidArgument), _) => {
            let failure = status.abort.as_ref().and_then(AbortHandle::async_error);
            // A revoke on another rank has failed no call of this one.
            let failure =
                failure.filter(|error| !status.revoked && !matches!(error, Error::Revoked { .. }));
            Ok(failure.map_or(result, |error| error.code()))
        }
        // In a child made by fork no thread ends the work.
        (ResultCode::InProgress, Some(stream)) => {
            stream.check_fork().map_err(|error| log_error(&error))?;
            Ok(ResultCode::InProgress)
        }
        (other, _) => Ok(other),
    })?
}

/// Whether a thread uses it or calls on streams have not ended; an error once it is gone.
pub(crate) fn is_used(handle: CommHandle) -> Result<bool, ResultCode> {
    let found = EntryRef::find(handle)?;
    match found.look() {
        Tenancy::Gone => Err(not_live()),
        Tenancy::Creating | Tenancy::InUse => Ok(true),
        Tenancy::Idle | Tenancy::Failed => Ok(found.entry.state.has_calls()),
    }
}

/// Reads the status of a live communicator.
pub(super) fn with_status<T>(
    handle: CommHandle,
    read: impl FnOnce(&mut EntryStatus) -> T,
) -> Result<T, ResultCode> {
    let found = EntryRef::find(handle)?;
    let mut status = found.entry.status();
    if found.look() != Tenancy::Gone && !status.aborted_in_creation {
        Ok(read(&mut status))
    } else {
        drop(status);
        Err(not_live())
    }
}
