//! The end of a communicator: finalize, destroy, abort and revoke.

use std::ffi::c_int;

use maypole::{AbortHandle, ResultCode};

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument, keep_error, refuse};
use crate::registry::{self, CommGuard, CommHandle, CommStage, ExclusiveComm};

/// Whether finalize has to wait for no call. For a communicator of a device that is not asked.
fn has_ended(comm: &CommGuard) -> bool {
    comm.device().is_none() && !comm.has_calls()
}

fn finalize(comm: &mut ExclusiveComm) -> Result<(), ResultCode> {
    comm.stage = CommStage::Finalized;
    let finished = comm.comm.finish();
    finished.map_err(|error| {
        let code = keep_error(&error);
        comm.call_context().record_failure(code);
        code
    })
}

abi! {
    /// `ncclCommFinalize`: waits for calls that were put on streams; on a communicator that does
    /// not block, on another thread. All other calls have ended by then.
    fn ncclCommFinalize(comm: CommHandle) -> NcclResult {
        guarded(|| {
            if comm.is_null() {
                return Ok(());
            }
            let comm = registry::acquire(comm)?;
            match comm.stage() {
                CommStage::Open | CommStage::Suspended
                    if comm.is_blocking() || has_ended(&comm) =>
                {
                    finalize(&mut comm.into_exclusive()?)
                }
                CommStage::Open | CommStage::Suspended => comm.defer().start(finalize),
                CommStage::Finalized => Err(invalid_argument(
                    "ncclCommFinalize: the communicator was finalized before",
                )),
                CommStage::Revoked => Err(refuse(
                    ResultCode::InvalidUsage,
                    "ncclCommFinalize: the communicator was revoked; destroy it",
                )),
            }
        })
    }

    /// `ncclCommDestroy`: waits as [`ncclCommFinalize`] does.
    fn ncclCommDestroy(comm: CommHandle) -> NcclResult {
        guarded(|| {
            if comm.is_null() || registry::is_inherited(comm) {
                return Ok(());
            }
            // The wait comes before the handle is removed, so that an abort can end it.
            if registry::is_on_device(comm)?
                && let Ok(comm) = registry::acquire_exclusive(comm)
            {
                // A failure of the communicator does not keep it from being destroyed.
                let _ = comm.comm.finish();
            }
            drop(registry::remove(comm)?);
            Ok(())
        })
    }

    /// `ncclCommAbort`: from any thread. A call of another thread ends with an error first.
    fn ncclCommAbort(comm: CommHandle) -> NcclResult {
        guarded(|| {
            if comm.is_null() || registry::is_inherited(comm) {
                return Ok(());
            }
            if registry::abort(comm)? {
                registry::wait_until_unused("ncclCommAbort", comm)?;
                drop(registry::remove(comm)?);
            }
            Ok(())
        })
    }

    /// `ncclCommRevoke`: ends the calls on the communicator, on all ranks.
    fn ncclCommRevoke(comm: CommHandle, flags: c_int) -> NcclResult {
        guarded(|| {
            if comm.is_null() {
                return Ok(());
            }
            if flags != 0 {
                return Err(invalid_argument(&format!("ncclCommRevoke: unknown flags {flags:#x}")));
            }
            // A communicator that a thread uses is open.
            if !registry::is_used(comm)? {
                let stage = registry::acquire_exclusive(comm)?.stage;
                if matches!(stage, CommStage::Finalized | CommStage::Revoked) {
                    let stage = stage.name();
                    return Err(invalid_argument(&format!(
                        "ncclCommRevoke: the communicator is {stage}"
                    )));
                }
            }
            registry::interrupt_and_wait("ncclCommRevoke", comm, AbortHandle::revoke)?;
            registry::acquire_exclusive(comm)?.revoke();
            Ok(())
        })
    }
}
