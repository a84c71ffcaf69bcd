//! What goes on with a communicator after the call has returned: on one that does not block. Until it is over the communicator is in
//! progress, and in use by the thread that does it.

use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

use maypole::AbortHandle;
use maypole::ResultCode;
use maypole::stream::{self, Stream};

use super::{Entered, Running, Visitor, issue};
use crate::boundary::decided;

/// A communicator that is in progress. It ceases to be when this is dropped.
pub(crate) struct Deferred {
    /// This thread's alone only after it has waited for what was issued on streams.
    entered: ManuallyDrop<Entered>,
    end: Result<(), ResultCode>,
}

impl Visitor {
    /// From now on the communicator is in progress.
    pub(crate) fn defer(self) -> Deferred {
        let mut side = self.place.side();
        side.result = ResultCode::InProgress;
        // A child made by fork is told by it that nobody is at it there.
        side.line.get_or_insert_with(Stream::new);
        drop(side);
        let entered = ManuallyDrop::new(Entered(self));
        Deferred { entered, end: Err(ResultCode::InternalError) }
    }

    /// Runs a call: issues it on its stream; on a default one returns when it is done, or at once, with `ncclInProgress`, where the
    /// communicator does not block.
    #[inline]
    pub(crate) fn run(
        self,
        on: Option<Stream>,
        call: impl FnOnce(&mut Running<'_>) -> Result<(), ResultCode> + Send + 'static,
    ) -> Result<(), ResultCode> {
        match on {
            None if self.blocks() => call(&mut self.alone()?.running()),
            None => self.defer().start(|entered| call(&mut entered.running())),
            Some(on) => issue(vec![self.launch(vec![on], call)]).map(drop),
        }
    }
}

impl Deferred {
    /// Does it on another thread, and returns `ncclInProgress` at once.
    #[cold]
    pub(crate) fn start(
        self,
        work: impl FnOnce(&mut Entered) -> Result<(), ResultCode> + Send + 'static,
    ) -> Result<(), ResultCode> {
        stream::behind(move || self.run(work)).map_err(|error| decided(&error))?;
        Err(ResultCode::InProgress)
    }

    /// Does it, after what was issued on streams; then the communicator is not in progress any more. What it ends with is what
    /// `ncclCommGetAsyncError` says from then on.
    fn run(mut self, work: impl FnOnce(&mut Entered) -> Result<(), ResultCode>) {
        self.end = self.entered.0.wait().and_then(|()| work(&mut self.entered));
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        let Visitor { place, state, .. } = self.entered.0;
        let mut side = place.side();
        let aborted = || side.abort.as_ref().and_then(AbortHandle::async_error);
        side.result = match self.end {
            Ok(()) => aborted().map_or(ResultCode::Success, |error| error.code()),
            Err(code) => code,
        };
        // Under the lock: who is told that it is over may use the communicator. Pairs with the exchange in `visit`.
        place.state.store(state, Ordering::Release);
    }
}
