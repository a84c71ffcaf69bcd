//! Guards through which a thread uses a communicator, shared with queued calls or exclusively.

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::null_mut;
use std::sync::PoisonError;

use maypole::ResultCode;
use maypole::internal::handle_state::Tenancy;
use maypole::internal::sync::Ordering;
use maypole::stream;
use maypole::{AbortSignal, Communicator};

use super::entry::{CommBody, CommStage, Entry, EntryRef, not_live};
use super::handle::CommHandle;
use super::operators::OperatorTable;
use super::windows::CommWindows;
use crate::boundary::{invalid_argument, log_error, refuse};
use crate::config::CommSettings;

/// A communicator that this thread may look at and queue calls on. Calls that were queued on
/// streams may be running. The communicator is given back when this is dropped.
pub(crate) struct CommGuard(pub(super) EntryRef);

/// A communicator that this thread alone uses; no queued call is left. It is given back when this
/// is dropped.
pub(crate) struct ExclusiveComm(pub(super) CommGuard);

/// The communicator of the one call that runs.
pub(crate) struct CallContext<'a> {
    /// The communicator.
    pub(crate) comm: &'a mut Communicator,
    pub(super) entry: &'static Entry,
}

/// Takes the communicator into use by this thread. A second thread is refused.
#[inline]
pub(crate) fn acquire(handle: CommHandle) -> Result<CommGuard, ResultCode> {
    let found = EntryRef::find(handle)?;
    match found.entry.state.try_acquire(found.generation) {
        Ok(()) => Ok(CommGuard(found)),
        Err(tenancy) => Err(unusable(found.entry, tenancy)),
    }
}

/// As [`acquire`], and waits until no queued call is left.
#[inline]
pub(crate) fn acquire_exclusive(handle: CommHandle) -> Result<ExclusiveComm, ResultCode> {
    acquire(handle)?.into_exclusive()
}

/// Why a communicator cannot be used now.
#[cold]
pub(super) fn unusable(entry: &Entry, tenancy: Tenancy) -> ResultCode {
    if tenancy == Tenancy::Gone {
        return not_live();
    }
    let status = entry.status();
    match status.result {
        _ if status.aborted_in_creation => not_live(),
        ResultCode::InProgress => invalid_argument(
            "an earlier call on the communicator is in progress; poll ncclCommGetAsyncError until \
             it says ncclSuccess",
        ),
        code if matches!(tenancy, Tenancy::Creating | Tenancy::Failed) => refuse(
            code,
            "the communicator could not be created, see the error of its init; abort or destroy it",
        ),
        _ => refuse(
            ResultCode::InvalidUsage,
            "the communicator is in use by another thread; one thread at a time may call it",
        ),
    }
}

impl CommGuard {
    /// Waits until no queued call is left.
    #[inline]
    pub(crate) fn into_exclusive(self) -> Result<ExclusiveComm, ResultCode> {
        if self.has_calls() {
            self.wait_for_calls()?;
        }
        Ok(ExclusiveComm(self))
    }

    #[cold]
    pub(super) fn wait_for_calls(&self) -> Result<(), ResultCode> {
        let entry = self.0.entry;
        let mut status = entry.status();
        if let Some(stream) = &status.call_stream {
            stream.check_fork().map_err(|error| log_error(&error))?;
        }
        if stream::is_at_work() {
            return Err(refuse(
                ResultCode::InvalidUsage,
                "a callback must not wait for calls on streams, as they may wait for the callback",
            ));
        }
        while self.has_calls() {
            status = entry.calls_ended.wait(status).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Whether queued calls are left. If not, this thread sees what they did.
    pub(crate) fn has_calls(&self) -> bool {
        self.0.entry.state.has_calls()
    }

    /// The communicator's rank and its number of ranks.
    #[inline]
    pub(crate) fn identity(&self) -> (u32, u32) {
        let entry = self.0.entry;
        (entry.rank.load(Ordering::Relaxed), entry.nranks.load(Ordering::Relaxed))
    }

    fn body(&self) -> *mut CommBody {
        // SAFETY: this thread uses the communicator, and only such a thread writes the pointer.
        unsafe { *self.0.entry.body.get() }
    }

    /// The operators that were created on it.
    #[inline]
    pub(crate) fn operators(&self) -> &OperatorTable {
        // SAFETY: an entry that a thread uses has a body, and queued calls touch only its `comm`.
        unsafe { &(*self.body()).operators }
    }

    /// The windows that are registered with it.
    pub(crate) fn windows(&self) -> &CommWindows {
        // SAFETY: as in `operators`.
        unsafe { &(*self.body()).windows }
    }

    /// The number of the CUDA device on which it works; None for host memory.
    #[inline]
    pub(crate) fn device(&self) -> Option<c_int> {
        // SAFETY: as in `operators`.
        unsafe { (*self.body()).device }
    }

    /// What it may be used for now.
    #[inline]
    pub(crate) fn stage(&self) -> CommStage {
        // SAFETY: as in `operators`.
        unsafe { (*self.body()).stage }
    }

    /// What its configuration changes.
    #[inline]
    pub(crate) fn settings(&self) -> &CommSettings {
        // SAFETY: as in `operators`.
        unsafe { &(*self.body()).settings }
    }

    /// Whether calls on it return when they are done.
    #[inline]
    pub(crate) fn is_blocking(&self) -> bool {
        self.settings().blocking
    }

    /// Refuses a call on a communicator that takes none.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<(), ResultCode> {
        match self.stage() {
            CommStage::Open => Ok(()),
            stage => Err(not_open(stage)),
        }
    }
}

#[cold]
fn not_open(stage: CommStage) -> ResultCode {
    let code = match stage {
        CommStage::Finalized => ResultCode::InvalidArgument,
        _ => ResultCode::InvalidUsage,
    };
    refuse(code, &format!("the communicator is {}", stage.name()))
}

impl Drop for CommGuard {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort_after_panic();
        }
        self.0.entry.state.release(self.0.generation);
    }
}

impl CommGuard {
    /// The panic has left the work of this rank half done, and others may wait for it.
    #[cold]
    fn abort_after_panic(&self) {
        if let Some(handle) = self.0.entry.status().abort.clone() {
            log::error!("a function of the library has panicked: its communicator is aborted");
            handle.abort();
        }
    }
}

impl ExclusiveComm {
    /// The communicator for a call that runs on this thread.
    #[inline]
    pub(crate) fn call_context(&mut self) -> CallContext<'_> {
        let entry = self.0.0.entry;
        CallContext { comm: &mut self.comm, entry }
    }

    /// Takes the communicator out of the registry. Its handle is refused from now on.
    pub(crate) fn remove(self) -> Option<Box<CommBody>> {
        // The entry is vacated, not given back.
        let found = ManuallyDrop::new(self.0).0;
        // SAFETY: this thread uses the communicator, and no queued call is left.
        let body = unsafe { std::mem::replace(&mut *found.entry.body.get(), null_mut()) };
        found.vacate();
        // SAFETY: the pointer came of a box in `Reservation::fill` and was removed from the entry.
        (!body.is_null()).then(|| unsafe { Box::from_raw(body) })
    }

    /// Says what ends the creation of the child that is created from it now; None if none is. An
    /// abort of this communicator, also an earlier one, ends that creation.
    pub(crate) fn set_child(&self, signal: Option<AbortSignal>) {
        let mut status = self.0.0.entry.status();
        let already_interrupted = signal.clone().filter(|_| status.interrupted);
        status.child = signal;
        drop(status);
        already_interrupted.into_iter().for_each(|signal| signal.abort());
    }

    /// Sets the stage after a revoke. Its state is then ncclSuccess, as nothing runs any more, and
    /// stays so.
    pub(crate) fn revoke(&mut self) {
        self.stage = CommStage::Revoked;
        let mut status = self.0.0.entry.status();
        status.revoked = true;
        status.result = ResultCode::Success;
    }

    /// Children that are asked for from now on are created although it was interrupted.
    pub(crate) fn forget_interruption(&self) {
        self.0.0.entry.status().interrupted = false;
    }

    /// Records how the creation of its children ended. A failure of the communicator stays.
    pub(crate) fn record_creation(&self, result: Result<(), ResultCode>) {
        let failure = self.comm.async_error().map(|error| error.code());
        // What ended the calls of a revoked communicator is no failure of its children.
        let failure = failure.filter(|_| self.stage != CommStage::Revoked);
        self.0.0.entry.status().result = match result {
            // Wrong arguments do not harm the parent.
            Ok(()) | Err(ResultCode::InvalidArgument) if failure.is_none() => ResultCode::Success,
            Ok(()) => failure.unwrap_or(ResultCode::Success),
            Err(code) => code,
        };
    }
}

impl Deref for ExclusiveComm {
    type Target = CommBody;

    #[inline]
    fn deref(&self) -> &CommBody {
        // SAFETY: this thread uses the communicator, so the entry has a body; no queued call is
        // left that could touch its `comm`.
        unsafe { &*self.0.body() }
    }
}

impl DerefMut for ExclusiveComm {
    #[inline]
    fn deref_mut(&mut self) -> &mut CommBody {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.0.body() }
    }
}

impl CallContext<'_> {
    /// Records that a call failed and broke the communicator.
    #[cold]
    pub(crate) fn record_failure(&self, code: ResultCode) {
        let mut status = self.entry.status();
        // Work in progress records its own end.
        if status.result != ResultCode::InProgress {
            status.result = code;
        }
    }
}
