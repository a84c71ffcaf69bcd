//! Work on a communicator that does not block: it runs on another thread after the function has
//! returned `ncclInProgress`. Until it ends, that thread uses the communicator.

use std::mem::ManuallyDrop;

use maypole::AbortHandle;
use maypole::ResultCode;
use maypole::stream::{self, Stream};

use super::access::{CallContext, CommGuard, ExclusiveComm};
use super::entry::EntryRef;
use super::stream_call::queue_on_streams;
use crate::boundary::log_error;

/// A communicator that is in progress, until this is dropped.
pub(crate) struct DeferredWork {
    /// Exclusive only after this thread has waited for the calls on streams.
    comm: ManuallyDrop<ExclusiveComm>,
    result: Result<(), ResultCode>,
}

impl CommGuard {
    /// Makes the communicator be in progress from now on.
    pub(crate) fn defer(self) -> DeferredWork {
        let mut status = self.0.entry.status();
        status.result = ResultCode::InProgress;
        // By this stream a child made by fork learns that no thread does the work there.
        status.call_stream.get_or_insert_with(Stream::new);
        drop(status);
        let comm = ManuallyDrop::new(ExclusiveComm(self));
        DeferredWork { comm, result: Err(ResultCode::InternalError) }
    }

    /// Runs a call, or queues it on its stream. On a default stream (None) it returns when the call
    /// is done, or at once, with `ncclInProgress`, if the communicator does not block.
    #[inline]
    pub(crate) fn run(
        self,
        stream: Option<Stream>,
        call: impl FnOnce(&mut CallContext<'_>) -> Result<(), ResultCode> + Send + 'static,
    ) -> Result<(), ResultCode> {
        match stream {
            None if self.is_blocking() => call(&mut self.into_exclusive()?.call_context()),
            None => self.defer().start(|comm| call(&mut comm.call_context())),
            Some(stream) => queue_on_streams(vec![self.stream_call(vec![stream], call)]).map(drop),
        }
    }
}

impl DeferredWork {
    /// Starts the work on another thread, and returns `ncclInProgress` at once.
    #[cold]
    pub(crate) fn start(
        self,
        work: impl FnOnce(&mut ExclusiveComm) -> Result<(), ResultCode> + Send + 'static,
    ) -> Result<(), ResultCode> {
        let abort = self.comm.0.0.entry.status().abort.clone();
        stream::behind(move || self.run(work)).map_err(|error| {
            // The other ranks wait for what this one cannot do.
            abort.iter().for_each(AbortHandle::abort);
            log_error(&error)
        })?;
        Err(ResultCode::InProgress)
    }

    /// Does the work after the calls on streams. `ncclCommGetAsyncError` gives its result from
    /// then on.
    fn run(mut self, work: impl FnOnce(&mut ExclusiveComm) -> Result<(), ResultCode>) {
        self.result = self.comm.0.wait_for_calls().and_then(|()| work(&mut self.comm));
    }
}

impl Drop for DeferredWork {
    fn drop(&mut self) {
        let EntryRef { entry, generation, .. } = self.comm.0.0;
        let mut status = entry.status();
        let failure = || status.abort.as_ref().and_then(AbortHandle::async_error);
        status.result = match self.result {
            Ok(()) => failure().map_or(ResultCode::Success, |error| error.code()),
            Err(code) => code,
        };
        // Under the lock: a thread that reads that the work is over may use the communicator.
        entry.state.release(generation);
    }
}
