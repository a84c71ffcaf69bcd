//! Calls that are issued on streams: counted among the communicator's until they end.

use std::sync::atomic::Ordering;

use maypole::ResultCode;
use maypole::stream::{self, Issue, Stream, Ticket, Work};

use super::entry::Place;
use super::{Running, Visitor};
use crate::boundary::decided;

/// A call that was issued and has not ended; ends when dropped.
struct Issued {
    place: &'static Place,
}

/// What is to run on a communicator, and on which streams.
pub(crate) struct Launch {
    /// Counted among the communicator's calls already.
    issued: Issued,
    line: Stream,
    /// What is done with the communicator.
    call: LaunchedCall,
    /// Apart from the communicator's own.
    streams: Vec<Stream>,
}

type LaunchedCall = Box<dyn FnOnce(&mut Running<'_>) -> Result<(), ResultCode> + Send>;

/// Issues calls, all at once: those of different communicators run side by side even on one stream. What waits for their results
/// gets tickets in the same order.
pub(crate) fn issue(launches: Vec<Launch>) -> Result<Vec<Ticket>, ResultCode> {
    let places: Vec<_> = launches.iter().map(|launch| launch.issued.place).collect();
    let batch = launches.into_iter().map(Launch::into_issue).collect();
    let tickets = stream::issue(batch).map_err(|error| decided(&error))?;
    for (place, ticket) in places.iter().zip(&tickets) {
        let mut side = place.side();
        side.tickets.retain(|ticket| !ticket.has_ended());
        side.tickets.push(ticket.clone());
    }
    Ok(tickets)
}

impl Visitor {
    /// A call to be issued on these streams; from now on the communicator has it to wait for.
    pub(crate) fn launch(
        &self,
        streams: Vec<Stream>,
        call: impl FnOnce(&mut Running<'_>) -> Result<(), ResultCode> + Send + 'static,
    ) -> Launch {
        let place = self.place;
        place.issued.fetch_add(1, Ordering::Relaxed);
        let line = place.side().line.get_or_insert_with(Stream::new).clone();
        Launch { issued: Issued { place }, line, call: Box::new(call), streams }
    }
}

impl Launch {
    fn into_issue(self) -> Issue {
        let Self { issued, line, call, streams: mut on } = self;
        on.push(line);
        let work: Work = Box::new(move || {
            // All of it, and not its place alone.
            let issued = issued;
            let place = issued.place;
            // SAFETY: the place is let and its body stays as long as `issued`, which keeps others off its `comm`; the
            // communicator's line lets one call run at a time.
            let comm = unsafe { &mut (**place.body.get()).comm };
            call(&mut Running { comm, place })
        });
        Issue { work, on }
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        let place = self.place;
        // Pairs as `issued`: the next user sees what this one did.
        if place.issued.fetch_sub(1, Ordering::Release) == 1 {
            // Who found it otherwise under the lock waits by now.
            drop(place.side());
            place.quiet.notify_all();
        }
    }
}
