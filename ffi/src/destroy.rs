//! The ends of a communicator: in peace, at once, and on the way to a successor.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use maypole::ResultCode;

use crate::boundary::{NcclResult, answer, failed, invalid, refuse};
use crate::export::abi;
use crate::registry::{self, Entered, Handle, Stage, Visitor};

/// How long an aborted call may take to return. Every wait ends within a fraction of a second.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);

impl Stage {
    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Finalized => "finalized; it can only be destroyed",
            Self::Revoked => "revoked; it can only be split, shrunk, destroyed or aborted",
            Self::Suspended => "suspended; ncclCommResume comes first",
        }
    }
}

/// Ends the calls on the communicator, on all ranks, and returns when no thread is in one here.
pub(crate) fn stop(function: &str, comm: Handle) -> Result<(), ResultCode> {
    registry::interrupt(comm)?;
    wait_until_idle(function, comm)?;
    registry::enter(comm)?.forget_interruption();
    Ok(())
}

fn wait_until_idle(function: &str, comm: Handle) -> Result<(), ResultCode> {
    let start = Instant::now();
    while registry::is_busy(comm)? {
        if start.elapsed() > ABORT_PATIENCE {
            let text = format!("{function}: a call of another thread does not end");
            return Err(refuse(ResultCode::InternalError, &text));
        }
        // Nobody wakes this thread; the call ends at once, or with its next system call.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether there is nothing to wait for; of a device that is not asked.
fn is_over(visitor: &Visitor) -> bool {
    visitor.device().is_none() && visitor.is_quiet()
}

fn finalize(entered: &mut Entered) -> Result<(), ResultCode> {
    entered.stage = Stage::Finalized;
    let finished = entered.comm.finish();
    finished.map_err(|error| {
        let code = failed(&error);
        entered.running().broke(code);
        code
    })
}

abi! {
    /// `ncclCommFinalize`: waits for the calls that were put on streams, behind its back where the communicator does not block;
    /// all others are over by then.
    fn ncclCommFinalize(comm: Handle) -> NcclResult {
        answer(|| {
            if comm.is_null() {
                return Ok(());
            }
            let visitor = registry::visit(comm)?;
            match visitor.stage() {
                Stage::Open | Stage::Suspended if visitor.blocks() || is_over(&visitor) => {
                    finalize(&mut visitor.alone()?)
                }
                Stage::Open | Stage::Suspended => visitor.defer().start(finalize),
                Stage::Finalized => {
                    Err(invalid("ncclCommFinalize: the communicator was finalized before"))
                }
                Stage::Revoked => Err(refuse(
                    ResultCode::InvalidUsage,
                    "ncclCommFinalize: the communicator was revoked; destroy it",
                )),
            }
        })
    }

    /// `ncclCommDestroy`: waits as [`ncclCommFinalize`] does.
    fn ncclCommDestroy(comm: Handle) -> NcclResult {
        answer(|| {
            if comm.is_null() {
                return Ok(());
            }
            // An abort can end this wait as long as the handle is one. What it ends with, the communicator says no more.
            if registry::is_of_cuda(comm)?
                && let Ok(entered) = registry::enter(comm)
            {
                let _ = entered.comm.finish();
            }
            drop(registry::evict(comm)?);
            Ok(())
        })
    }

    /// `ncclCommAbort`: from any thread; a call that is under way on another one ends with an error first.
    fn ncclCommAbort(comm: Handle) -> NcclResult {
        answer(|| {
            if comm.is_null() {
                return Ok(());
            }
            if registry::abort(comm)? {
                wait_until_idle("ncclCommAbort", comm)?;
                drop(registry::evict(comm)?);
            }
            Ok(())
        })
    }

    /// `ncclCommRevoke`: ends the calls on the communicator, on all ranks.
    fn ncclCommRevoke(comm: Handle, flags: c_int) -> NcclResult {
        answer(|| {
            if flags != 0 {
                return Err(invalid(&format!("ncclCommRevoke: unknown flags {flags:#x}")));
            }
            // While a thread is in a call the communicator is open.
            if !registry::is_busy(comm)? {
                let entered = registry::enter(comm)?;
                if matches!(entered.stage, Stage::Finalized | Stage::Revoked) {
                    let stage = entered.stage.name();
                    return Err(invalid(&format!("ncclCommRevoke: the communicator is {stage}")));
                }
            }
            stop("ncclCommRevoke", comm)?;
            registry::enter(comm)?.stage = Stage::Revoked;
            Ok(())
        })
    }
}
