//! An entry whose communicator is being created.

use std::ffi::c_int;
use std::mem::ManuallyDrop;

use maypole::ResultCode;
use maypole::internal::sync::Ordering;
use maypole::stream::Stream;
use maypole::{AbortSignal, Communicator};

use super::buffers::BufferTable;
use super::entry::{CommBody, CommStage, EntryRef, EntryStatus};
use super::handle::CommHandle;
use super::operators::OperatorTable;
use super::windows::CommWindows;
use crate::boundary::{invalid_argument, log_error};
use crate::config::CommSettings;

/// The entry of a communicator that is being created. If it is dropped, the creation has failed.
pub(crate) struct Reservation(EntryRef);

/// Reserves an entry. Its handle may be used for queries and for abort at once.
///
/// `identity` is rank and number of ranks, if they are known; `device` is the result of
/// `ncclCommCuDevice`.
pub(crate) fn reserve(
    identity: Option<(u32, u32)>,
    blocking: bool,
    device: c_int,
) -> Result<Reservation, ResultCode> {
    let signal = AbortSignal::new().map_err(|error| log_error(&error.into()))?;
    let (rank, nranks) = identity.unwrap_or((0, 0));
    let reserved = EntryRef::begin(|entry| {
        entry.rank.store(rank, Ordering::Relaxed);
        entry.nranks.store(nranks, Ordering::Relaxed);
        *entry.status() = EntryStatus {
            signal: Some(signal),
            result: ResultCode::InProgress,
            blocking,
            device,
            call_stream: (!blocking).then(Stream::new),
            ..EntryStatus::new()
        };
    });
    reserved.map(Reservation)
}

impl Reservation {
    /// The handle for the client.
    pub(crate) fn handle(&self) -> CommHandle {
        self.0.handle()
    }

    /// The signal that aborts the creation.
    pub(crate) fn signal(&self) -> Option<AbortSignal> {
        self.0.entry.status().signal.clone()
    }

    /// The communicator was created. An error if it was aborted during the creation.
    pub(crate) fn fill(self, comm: Communicator, settings: CommSettings) -> Result<(), ResultCode> {
        let reserved = self.into_entry();
        let entry = reserved.entry;
        entry.rank.store(comm.rank(), Ordering::Relaxed);
        entry.nranks.store(comm.nranks(), Ordering::Relaxed);
        let mut status = entry.status();
        if status.aborted_in_creation {
            drop(status);
            drop(comm);
            reserved.vacate();
            return Err(invalid_argument("the communicator was aborted during its creation"));
        }
        status.abort = Some(comm.abort_handle());
        status.result = ResultCode::Success;
        status.on_device = comm.device().is_some();
        let body = CommBody {
            device: comm.device(),
            comm,
            settings,
            operators: OperatorTable::new(reserved.index as u32),
            buffers: BufferTable::default(),
            windows: CommWindows::new(reserved.handle()),
            stage: CommStage::Open,
        };
        let body = Box::into_raw(Box::new(body));
        // SAFETY: this thread creates the communicator, so no other thread touches the body.
        unsafe { *entry.body.get() = body };
        entry.state.publish(reserved.generation);
        Ok(())
    }

    /// The communicator could not be created. Its handle says so until it is destroyed.
    pub(crate) fn fail(self, code: ResultCode) {
        record_failure(self.into_entry(), code);
    }

    /// There will be no communicator. The handle is refused from now on.
    pub(crate) fn cancel(self) {
        self.into_entry().vacate();
    }

    /// The entry, without the failure that a drop would record.
    fn into_entry(self) -> EntryRef {
        ManuallyDrop::new(self).0
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        record_failure(self.0, ResultCode::InternalError);
    }
}

fn record_failure(reserved: EntryRef, code: ResultCode) {
    let mut status = reserved.entry.status();
    status.result = code;
    if status.aborted_in_creation {
        drop(status);
        reserved.vacate();
    } else {
        reserved.entry.state.fail(reserved.generation);
    }
}
