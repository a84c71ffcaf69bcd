//! Calls that are queued on host streams. The communicator counts them until they end.

use maypole::ResultCode;
use maypole::stream::{self, Issue, Stream, Work, WorkTicket};

use super::access::{CallContext, CommGuard};
use super::entry::Entry;
use crate::boundary::log_error;

/// A call and the streams on which it is to be queued.
pub(crate) struct StreamCall {
    /// Counts the call already.
    pending: PendingCall,
    /// The communicator's own stream, which keeps its calls in order.
    call_stream: Stream,
    run: RunCall,
    /// The client's streams.
    streams: Vec<Stream>,
}

/// Counts a call that has not ended. The call ends when this is dropped.
struct PendingCall {
    entry: &'static Entry,
}

type RunCall = Box<dyn FnOnce(&mut CallContext<'_>) -> Result<(), ResultCode> + Send>;

/// Queues calls, all at once: those of different communicators run side by side even on one
/// stream. Returns their tickets in the same order.
pub(crate) fn queue_on_streams(calls: Vec<StreamCall>) -> Result<Vec<WorkTicket>, ResultCode> {
    let entries: Vec<_> = calls.iter().map(|call| call.pending.entry).collect();
    let batch = calls.into_iter().map(StreamCall::into_issue).collect();
    let tickets = stream::issue(batch).map_err(|error| log_error(&error))?;
    for (entry, ticket) in entries.iter().zip(&tickets) {
        let mut status = entry.status();
        status.tickets.retain(|ticket| !ticket.has_ended());
        status.tickets.push(ticket.clone());
    }
    Ok(tickets)
}

impl CommGuard {
    /// A call for these streams. The communicator counts it from now on.
    pub(crate) fn stream_call(
        &self,
        streams: Vec<Stream>,
        run: impl FnOnce(&mut CallContext<'_>) -> Result<(), ResultCode> + Send + 'static,
    ) -> StreamCall {
        let entry = self.0.entry;
        entry.state.begin_call();
        let call_stream = entry.status().call_stream.get_or_insert_with(Stream::new).clone();
        StreamCall { pending: PendingCall { entry }, call_stream, run: Box::new(run), streams }
    }
}

impl StreamCall {
    fn into_issue(self) -> Issue {
        let Self { pending, call_stream, run, mut streams } = self;
        streams.push(call_stream);
        let work: Work = Box::new(move || {
            // The closure takes the guard, not only the entry in it, and drops it at its end.
            let pending = pending;
            let entry = pending.entry;
            // SAFETY: the body stays as long as `pending` counts the call, which keeps users of the
            // communicator off its `comm`; its own stream runs one call at a time.
            let comm = unsafe { &mut (**entry.body.get()).comm };
            run(&mut CallContext { comm, entry })
        });
        Issue { work, on: streams }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let entry = self.entry;
        if entry.state.end_call() {
            // A thread that found calls left under the lock waits after this.
            drop(entry.status());
            entry.calls_ended.notify_all();
        }
    }
}
