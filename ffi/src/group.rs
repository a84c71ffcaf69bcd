//! Groups: between start and end, calls are queued by the thread; the outermost end runs them.
//!
//! Collectives of one communicator run in their order, then its sends and receives all at once. Different communicators of one thread are run by a thread each, since
//! peers may be in either, and so are initialisations: one thread can so be several ranks.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;

use maypole::Transfer;
use maypole::error::ResultCode;

use crate::answer::{NcclResult, answer, refuse};
use crate::collective::Request;
use crate::communicator::Initialisation;
use crate::registry::{self, Entered, Handle};
use crate::transfer;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static WORK: RefCell<Work> = const { RefCell::new(Work::new()) };
}

/// What a thread's open group holds.
struct Work {
    initialisations: Vec<Initialisation>,
    /// By communicator, in the order of the first call.
    calls: Vec<(Communicator, Calls)>,
    /// The first error.
    error: Option<ResultCode>,
}

/// The calls of one communicator.
#[derive(Default)]
struct Calls {
    collectives: Vec<Request>,
    transfers: Vec<Transfer>,
}

// SAFETY: the client lends the buffers to the group until its end, on whatever thread its calls run.
unsafe impl Send for Calls {}

impl Calls {
    fn run(self, entered: &mut Entered) -> Result<(), ResultCode> {
        self.collectives.into_iter().try_for_each(|request| request.run(entered))?;
        if self.transfers.is_empty() {
            return Ok(());
        }
        transfer::run(&self.transfers, entered)
    }
}

/// A handle on its way to another thread.
#[derive(Clone, Copy, PartialEq)]
struct Communicator(Handle);

// SAFETY: a handle is a number, not an address.
unsafe impl Send for Communicator {}

impl Work {
    const fn new() -> Self {
        Self { initialisations: Vec::new(), calls: Vec::new(), error: None }
    }

    fn run(self) -> Result<(), ResultCode> {
        if let Some(code) = self.error {
            return Err(code);
        }
        side_by_side(self.initialisations, Initialisation::run)?;
        side_by_side(self.calls, |(Communicator(handle), calls)| {
            let mut entered = registry::enter(handle)?;
            calls.run(&mut entered)
        })
    }
}

/// Runs every item on a thread of its own, a single one on this; returns the first error in the order of the items.
fn side_by_side<T: Send>(
    mut items: Vec<T>,
    run: impl Fn(T) -> Result<(), ResultCode> + Sync,
) -> Result<(), ResultCode> {
    if items.len() <= 1 {
        return items.pop().map_or(Ok(()), run);
    }
    std::thread::scope(|scope| {
        let spawn = |item| {
            let run = &run;
            scope.spawn(move || run(item))
        };
        let threads: Vec<_> = items.into_iter().map(spawn).collect();
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(ResultCode::InternalError)))
            .collect();
        results.into_iter().collect()
    })
}

/// True if this thread is in a group.
#[inline]
pub(crate) fn is_open() -> bool {
    DEPTH.get() > 0
}

/// Keeps an error for the end of the group, if one is open; returns what it was given.
pub(crate) fn note(result: Result<(), ResultCode>) -> Result<(), ResultCode> {
    if let (Err(code), true) = (result, is_open()) {
        WORK.with_borrow_mut(|work| work.error.get_or_insert(code).to_owned());
    }
    result
}

/// Queues a collective of the open group.
pub(crate) fn queue(comm: Handle, request: Request) {
    with_calls(comm, |calls| calls.collectives.push(request));
}

/// Queues a send or a receive of the open group.
pub(crate) fn queue_transfer(comm: Handle, transfer: Transfer) {
    with_calls(comm, |calls| calls.transfers.push(transfer));
}

fn with_calls(comm: Handle, add: impl FnOnce(&mut Calls)) {
    let comm = Communicator(comm);
    WORK.with_borrow_mut(|work| {
        let at = work.calls.iter().position(|(of, _)| *of == comm).unwrap_or_else(|| {
            work.calls.push((comm, Calls::default()));
            work.calls.len() - 1
        });
        add(&mut work.calls[at].1);
    });
}

/// Queues an initialisation of the open group.
pub(crate) fn queue_initialisation(initialisation: Initialisation) {
    WORK.with_borrow_mut(|work| work.initialisations.push(initialisation));
}

/// `ncclGroupStart`
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> NcclResult {
    DEPTH.set(DEPTH.get() + 1);
    ResultCode::Success as c_int
}

/// `ncclGroupEnd`
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> NcclResult {
    answer(|| match DEPTH.get() {
        0 => Err(refuse(ResultCode::InvalidUsage, "ncclGroupEnd without ncclGroupStart")),
        1 => {
            DEPTH.set(0);
            WORK.replace(Work::new()).run()
        }
        depth => {
            DEPTH.set(depth - 1);
            Ok(())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_match_starts() {
        assert_eq!(ncclGroupEnd(), ResultCode::InvalidUsage as c_int);
        assert_eq!([ncclGroupStart(), ncclGroupStart(), ncclGroupEnd()], [0; 3]);
        assert!(is_open());
        assert_eq!(ncclGroupEnd(), 0);
        assert!(!is_open());
    }

    #[test]
    fn the_first_error_of_a_group_is_its_end() {
        ncclGroupStart();
        assert!(note(Err(ResultCode::InvalidArgument)).is_err());
        assert!(note(Err(ResultCode::InvalidUsage)).is_err());
        assert_eq!(ncclGroupEnd(), ResultCode::InvalidArgument as c_int);
        assert!(note(Err(ResultCode::SystemError)).is_err());
        ncclGroupStart();
        assert_eq!(ncclGroupEnd(), 0);
    }

    #[test]
    fn items_run_side_by_side_and_the_first_error_counts() {
        let barrier = std::sync::Barrier::new(3);
        let run = |code: Option<ResultCode>| {
            barrier.wait();
            code.map_or(Ok(()), Err)
        };
        let codes = vec![None, Some(ResultCode::Timeout), Some(ResultCode::SystemError)];
        assert_eq!(side_by_side(codes, run), Err(ResultCode::Timeout));
    }
}
