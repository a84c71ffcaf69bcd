//! Aborts a communicator, interrupts its waiting calls, and removes its entry.

use std::time::{Duration, Instant};

use maypole::internal::handle_state::Tenancy;
use maypole::stream::WorkTicket;
use maypole::{AbortHandle, ResultCode};

use super::access::acquire_exclusive;
use super::entry::{CommBody, Entry, EntryRef, not_live};
use super::handle::CommHandle;
use super::query::{is_used, with_status};
use crate::boundary::refuse;

/// How long an aborted call may take to return. Every wait ends within a fraction of a second.
const ABORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Ends every wait of the communicator and the creation of its children. False if the communicator
/// itself was being created; then its handle is refused from now on.
pub(crate) fn abort(handle: CommHandle) -> Result<bool, ResultCode> {
    let found = EntryRef::find(handle)?;
    let mut status = found.entry.status();
    let tenancy = found.look();
    if tenancy == Tenancy::Gone || status.aborted_in_creation {
        drop(status);
        return Err(not_live());
    }
    let in_creation = tenancy == Tenancy::Creating;
    status.aborted_in_creation = in_creation;
    status.interrupted = true;
    let (signal, child) = (status.signal.clone(), status.child.clone());
    drop(status);
    signal.into_iter().chain(child).for_each(|signal| signal.abort());
    cancel_queued_calls(found.entry);
    Ok(!in_creation)
}

/// Ends the calls on the communicator, on all ranks, by `end`, and returns when no thread of this
/// process is in one. The communicator stays.
pub(crate) fn interrupt_and_wait(
    function: &str,
    handle: CommHandle,
    end: fn(&AbortHandle),
) -> Result<(), ResultCode> {
    interrupt(handle, end)?;
    wait_until_unused(function, handle)?;
    acquire_exclusive(handle)?.forget_interruption();
    Ok(())
}

/// Returns when no thread uses the communicator and no call on a stream is left. For use after an
/// abort or an interrupt.
pub(crate) fn wait_until_unused(function: &str, handle: CommHandle) -> Result<(), ResultCode> {
    let start = Instant::now();
    while is_used(handle)? {
        if start.elapsed() > ABORT_TIMEOUT {
            let text = format!(
                "{function}: a call of another thread does not end although it was aborted; \
                 please report it"
            );
            return Err(refuse(ResultCode::InternalError, &text));
        }
        // Nothing wakes this thread; the call ends at once, or with its next system call.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Takes a communicator, or one that could not be created, out of the registry. Its handle is
/// refused from now on. Waits for calls on streams.
pub(crate) fn remove(handle: CommHandle) -> Result<Option<Box<CommBody>>, ResultCode> {
    let found = EntryRef::find(handle)?;
    if found.entry.state.try_acquire_failed(found.generation) {
        found.vacate();
        return Ok(None);
    }
    Ok(acquire_exclusive(handle)?.remove())
}

/// Ends the communicator's waits on all ranks by `end` and the creation of its children, and
/// cancels its calls that wait for their turn on a stream behind other work.
pub(super) fn interrupt(handle: CommHandle, end: fn(&AbortHandle)) -> Result<(), ResultCode> {
    let (abort, child) = with_status(handle, |status| {
        status.interrupted = true;
        (status.abort.clone(), status.child.clone())
    })?;
    end(&abort.ok_or_else(not_live)?);
    child.into_iter().for_each(|signal| signal.abort());
    cancel_queued_calls(EntryRef::find(handle)?.entry);
    Ok(())
}

fn cancel_queued_calls(entry: &Entry) {
    let tickets = std::mem::take(&mut entry.status().tickets);
    // Without the lock: calls that end by this take it.
    tickets.iter().for_each(WorkTicket::cancel);
}
