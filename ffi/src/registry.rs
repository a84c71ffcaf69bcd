//! Communicator handles. A handle is a number in the shape of a pointer: a place in a table and the generation of its
//! tenant. So a handle that was destroyed, or that never was one, is refused and nothing is read through it; a live one is
//! found without a hash, an allocation or a lock beyond one uncontended exchange.
//!
//! A communicator is in use by one thread at a time, which may look at it ([`Visitor`]) while calls that were issued on host
//! streams wait or run on other threads; for all else ([`Entered`]) it waits until there are none.
//!
//! A place is let before its communicator exists, so that another thread can ask for it, or abort it, while it is being made.
//! Places are never freed, only let again, to the next generation.

mod deferred;
mod entry;
mod issue;
#[cfg(test)]
mod tests;

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::null_mut;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use maypole::ResultCode;
use maypole::stream::{self, Stream, Ticket};
use maypole::{AbortHandle, AbortSignal, Communicator};

use crate::boundary::{decided, invalid, refuse};
use crate::config::Settings;
use crate::memory::Registrations;
use crate::operator::Operators;
use crate::window::Windows;
use entry::{
    BUSY, GENERATION, HOLLOW, LIVE, Place, Side, find, handle, not_live, vacant_place, vacate,
};

pub(crate) use issue::issue;

/// `ncclComm_t` as the client holds it.
pub(crate) type Handle = *mut c_void;

/// What a communicator may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Everything.
    Open,
    /// Its end.
    Finalized,
    /// Its end, and offspring.
    Revoked,
    /// To resume.
    Suspended,
}

/// What belongs to a communicator.
pub(crate) struct Body {
    /// The communicator itself.
    pub(crate) comm: Communicator,
    /// The CUDA device that it is for; None: host memory.
    pub(crate) device: Option<c_int>,
    /// How it was configured.
    pub(crate) settings: Settings,
    /// The operators made on it.
    pub(crate) operators: Operators,
    /// The buffers registered with it.
    pub(crate) registrations: Registrations,
    /// The windows registered with it.
    pub(crate) windows: Windows,
    /// Where it is in its life.
    pub(crate) stage: Stage,
}

/// A place for a communicator that is being made. Dropped, it is one whose making failed.
pub(crate) struct Reserved {
    place: &'static Place,
    index: usize,
    /// Live and neither busy nor hollow.
    state: u64,
}

/// A communicator that this thread looks at, and may issue calls on; given back when dropped. Calls that were issued on streams
/// may be running.
pub(crate) struct Visitor {
    place: &'static Place,
    state: u64,
    index: usize,
}

/// A communicator in use by this thread and no other; given back when dropped.
pub(crate) struct Entered(Visitor);

/// A communicator in use by the one call that runs.
pub(crate) struct Running<'a> {
    /// The communicator.
    pub(crate) comm: &'a mut Communicator,
    place: &'static Place,
}

/// Lets a place: its handle is good at once for questions and for abort.
pub(crate) fn reserve(
    identity: Option<(u32, u32)>,
    blocking: bool,
    device: c_int,
) -> Result<Reserved, ResultCode> {
    let signal = AbortSignal::new().map_err(|error| decided(&error.into()))?;
    let (index, place) = vacant_place()?;
    let (rank, nranks) = identity.unwrap_or((0, 0));
    place.rank.store(rank, Ordering::Relaxed);
    place.nranks.store(nranks, Ordering::Relaxed);
    let result = ResultCode::InProgress;
    let line = (!blocking).then(Stream::new);
    *place.side() = Side { signal: Some(signal), result, blocking, device, line, ..Side::new() };
    let generation = (place.state.load(Ordering::Relaxed) >> GENERATION) + 1;
    let state = generation << GENERATION | LIVE;
    place.state.store(state | BUSY | HOLLOW, Ordering::Release);
    Ok(Reserved { place, index, state })
}

impl Reserved {
    /// What the client gets.
    pub(crate) fn handle(&self) -> Handle {
        handle(self.index, self.state >> GENERATION)
    }

    /// By which its making is aborted.
    pub(crate) fn signal(&self) -> Option<AbortSignal> {
        self.place.side().signal.clone()
    }

    /// The communicator is there.
    pub(crate) fn fill(self, comm: Communicator, settings: Settings) -> Result<(), ResultCode> {
        let Self { place, index, state } = *ManuallyDrop::new(self);
        place.rank.store(comm.rank(), Ordering::Relaxed);
        place.nranks.store(comm.nranks(), Ordering::Relaxed);
        let mut side = place.side();
        if side.abandoned {
            drop(side);
            drop(comm);
            vacate(place, index, state);
            return Err(invalid("the communicator was aborted while it was being made"));
        }
        side.abort = Some(comm.abort_handle());
        side.result = ResultCode::Success;
        side.cuda = comm.device().is_some();
        let body = Body {
            device: comm.device(),
            comm,
            settings,
            operators: Operators::new(index as u32),
            registrations: Registrations::default(),
            windows: Windows::of(handle(index, state >> GENERATION)),
            stage: Stage::Open,
        };
        let body = Box::into_raw(Box::new(body));
        // SAFETY: the place is busy for the sake of this reservation, so nobody else touches its body.
        unsafe { *place.body.get() = body };
        // Pairs with the exchange in `visit`: who sees the place neither busy nor hollow sees the body.
        place.state.store(state, Ordering::Release);
        Ok(())
    }

    /// It could not be made, and the handle says so until it is destroyed.
    pub(crate) fn fail(self, code: ResultCode) {
        let Self { place, index, state } = *ManuallyDrop::new(self);
        fail(place, index, state, code);
    }

    /// There will be none, and the handle is none.
    pub(crate) fn cancel(self) {
        let Self { place, index, state } = *ManuallyDrop::new(self);
        vacate(place, index, state);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        fail(self.place, self.index, self.state, ResultCode::InternalError);
    }
}

fn fail(place: &'static Place, index: usize, state: u64, code: ResultCode) {
    let mut side = place.side();
    side.result = code;
    if side.abandoned {
        drop(side);
        vacate(place, index, state);
    } else {
        place.state.store(state | HOLLOW, Ordering::Release);
    }
}

/// Takes the communicator into use by this thread, as soon as nothing that was issued on a stream is left. One thread at a time: another
/// one is refused.
#[inline]
pub(crate) fn enter(handle: Handle) -> Result<Entered, ResultCode> {
    visit(handle)?.alone()
}

/// Looks at the communicator. One thread at a time: another one is refused.
#[inline]
pub(crate) fn visit(handle: Handle) -> Result<Visitor, ResultCode> {
    let (index, place, state) = find(handle)?;
    let exchanged =
        place.state.compare_exchange(state, state | BUSY, Ordering::Acquire, Ordering::Relaxed);
    match exchanged {
        Ok(_) => Ok(Visitor { place, state, index }),
        Err(now) => Err(not_now(place, state, now)),
    }
}

/// Why a communicator cannot be used.
#[cold]
fn not_now(place: &Place, state: u64, now: u64) -> ResultCode {
    if now & !(BUSY | HOLLOW) != state {
        return not_live();
    }
    let side = place.side();
    match side.result {
        _ if side.abandoned => not_live(),
        ResultCode::InProgress => invalid(
            "an earlier call on the communicator is in progress; poll ncclCommGetAsyncError until it says ncclSuccess",
        ),
        code if now & HOLLOW != 0 => refuse(
            code,
            "the communicator could not be made, see the error of its init; abort or destroy it",
        ),
        _ => refuse(
            ResultCode::InvalidUsage,
            "the communicator is in use by another thread; one thread at a time may call it",
        ),
    }
}

/// Rank and number of ranks of a communicator, in use or not.
pub(crate) fn identity(handle: Handle) -> Result<(u32, u32), ResultCode> {
    let (_, place, state) = find(handle)?;
    let identity = (place.rank.load(Ordering::Acquire), place.nranks.load(Ordering::Acquire));
    let now = place.state.load(Ordering::Acquire);
    if now & !BUSY == state || now & !(BUSY | HOLLOW) == state && identity.1 != 0 {
        Ok(identity)
    } else {
        Err(not_now(place, state, now))
    }
}

/// The communicator's device.
pub(crate) fn device(handle: Handle) -> Result<c_int, ResultCode> {
    with_side(handle, |side| side.device)
}

/// Whether it is of a CUDA device.
pub(crate) fn is_of_cuda(handle: Handle) -> Result<bool, ResultCode> {
    with_side(handle, |side| side.cuda)
}

/// Whether calls on it block.
pub(crate) fn blocks(handle: Handle) -> Result<bool, ResultCode> {
    with_side(handle, |side| side.blocking)
}

/// `ncclCommGetAsyncError`: never waits for a call that is under way.
pub(crate) fn async_result(handle: Handle) -> Result<ResultCode, ResultCode> {
    with_side(handle, |side| match (side.result, &side.line) {
        (result @ (ResultCode::Success | ResultCode::InvalidArgument), _) => Ok(side
            .abort
            .as_ref()
            .and_then(AbortHandle::async_error)
            .map_or(result, |error| error.code())),
        // Nobody ends it in a child made by fork.
        (ResultCode::InProgress, Some(line)) => {
            line.check_fork().map_err(|error| decided(&error))?;
            Ok(ResultCode::InProgress)
        }
        (other, _) => Ok(other),
    })?
}

/// True while the communicator is in use by a thread, or calls on streams have not ended; an error once it is gone.
pub(crate) fn is_busy(handle: Handle) -> Result<bool, ResultCode> {
    let (_, place, state) = find(handle)?;
    match place.state.load(Ordering::Acquire) {
        now if now & !(BUSY | HOLLOW) == state => {
            Ok(now & BUSY != 0 || place.issued.load(Ordering::Acquire) != 0)
        }
        _ => Err(not_live()),
    }
}

/// Makes every wait of the communicator, and of what is being made from it, end. False if it was itself being made: then
/// its handle is none any more.
pub(crate) fn abort(handle: Handle) -> Result<bool, ResultCode> {
    let (_, place, state) = find(handle)?;
    let mut side = place.side();
    let now = place.state.load(Ordering::Acquire);
    if now & !(BUSY | HOLLOW) != state || side.abandoned {
        return Err(not_live());
    }
    let making = now & HOLLOW != 0 && now & BUSY != 0;
    side.abandoned = making;
    side.interrupted = true;
    let (signal, child) = (side.signal.clone(), side.child.clone());
    drop(side);
    signal.into_iter().chain(child).for_each(|signal| signal.abort());
    cancel_issued(place);
    Ok(!making)
}

/// Ends the communicator's waits on all ranks, without an end of the communicator, and those of what is being made from it; drops
/// its calls that wait for their turn on a stream, which they might for long, behind others.
pub(crate) fn interrupt(handle: Handle) -> Result<(), ResultCode> {
    let (abort, child) = with_side(handle, |side| {
        side.interrupted = true;
        (side.abort.clone(), side.child.clone())
    })?;
    abort.ok_or_else(not_live)?.abort();
    child.into_iter().for_each(|signal| signal.abort());
    let (_, place, _) = find(handle)?;
    cancel_issued(place);
    Ok(())
}

fn cancel_issued(place: &Place) {
    let tickets = std::mem::take(&mut place.side().tickets);
    // What ends by it takes the lock.
    tickets.iter().for_each(Ticket::cancel);
}

/// Ends the tenancy of a communicator, or of one that could not be made; its handle is refused from now on.
pub(crate) fn evict(handle: Handle) -> Result<Option<Box<Body>>, ResultCode> {
    let (index, place, state) = find(handle)?;
    let exchanged = |from, to| {
        place.state.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    if exchanged(state | HOLLOW, state | HOLLOW | BUSY) {
        vacate(place, index, state);
        return Ok(None);
    }
    Ok(enter(handle)?.evict())
}

fn with_side<T>(handle: Handle, read: impl FnOnce(&mut Side) -> T) -> Result<T, ResultCode> {
    let (_, place, state) = find(handle)?;
    let mut side = place.side();
    let now = place.state.load(Ordering::Acquire);
    if now & !(BUSY | HOLLOW) == state && !side.abandoned {
        Ok(read(&mut side))
    } else {
        drop(side);
        Err(not_live())
    }
}

impl Visitor {
    /// Waits until nothing that was issued on a stream is left; then the communicator is this thread's alone.
    #[inline]
    pub(crate) fn alone(self) -> Result<Entered, ResultCode> {
        // What the calls did is seen.
        if !self.is_quiet() {
            self.wait()?;
        }
        Ok(Entered(self))
    }

    #[cold]
    fn wait(&self) -> Result<(), ResultCode> {
        let place = self.place;
        let mut side = place.side();
        if let Some(line) = &side.line {
            line.check_fork().map_err(|error| decided(&error))?;
        }
        if stream::is_at_work() {
            return Err(refuse(
                ResultCode::InvalidUsage,
                "a callback must not wait for the calls that were issued on streams: it may stand before them",
            ));
        }
        while !self.is_quiet() {
            side = place.quiet.wait(side).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn body(&self) -> *mut Body {
        // SAFETY: this thread set BUSY; the pointer is written only by who has.
        unsafe { *self.place.body.get() }
    }

    /// The communicator's rank, and how many there are.
    #[inline]
    pub(crate) fn identity(&self) -> (u32, u32) {
        (self.place.rank.load(Ordering::Relaxed), self.place.nranks.load(Ordering::Relaxed))
    }

    /// The operators made on it.
    #[inline]
    pub(crate) fn operators(&self) -> &Operators {
        // SAFETY: this thread set BUSY, a live place that is not hollow has a body, and calls on streams touch only its `comm`.
        unsafe { &(*self.body()).operators }
    }

    /// The windows registered with it.
    pub(crate) fn windows(&self) -> &Windows {
        // SAFETY: as in `operators`.
        unsafe { &(*self.body()).windows }
    }

    /// The CUDA device that it is for; None: host memory.
    #[inline]
    pub(crate) fn device(&self) -> Option<c_int> {
        // SAFETY: as in `operators`.
        unsafe { (*self.body()).device }
    }

    /// Where it is in its life.
    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        // SAFETY: as in `operators`.
        unsafe { (*self.body()).stage }
    }

    /// How it was configured.
    #[inline]
    pub(crate) fn settings(&self) -> &Settings {
        // SAFETY: as in `operators`.
        unsafe { &(*self.body()).settings }
    }

    /// Whether calls on it block.
    #[inline]
    pub(crate) fn blocks(&self) -> bool {
        self.settings().blocking
    }

    /// Whether nothing that was issued on streams is left.
    pub(crate) fn is_quiet(&self) -> bool {
        // Pairs as `issued`.
        self.place.issued.load(Ordering::Acquire) == 0
    }
}

impl Running<'_> {
    /// A call failed, and with it the communicator.
    #[cold]
    pub(crate) fn broke(&self, code: ResultCode) {
        let mut side = self.place.side();
        // What is in progress says it itself, when it is over.
        if side.result != ResultCode::InProgress {
            side.result = code;
        }
    }
}

impl Entered {
    /// The communicator for a call that runs on this thread.
    #[inline]
    pub(crate) fn running(&mut self) -> Running<'_> {
        let place = self.0.place;
        Running { comm: &mut self.comm, place }
    }

    /// Ends the tenancy and returns what belongs to the communicator; its handle is refused from now on.
    pub(crate) fn evict(self) -> Option<Box<Body>> {
        let Visitor { place, state, index } = *ManuallyDrop::new(self.0);
        // SAFETY: this thread set BUSY, and nothing that was issued is left.
        let body = unsafe { std::mem::replace(&mut *place.body.get(), null_mut()) };
        vacate(place, index, state);
        // SAFETY: it came of a box in `fill`, and is in the place no more.
        (!body.is_null()).then(|| unsafe { Box::from_raw(body) })
    }

    /// Something is made from it: an abort of this one, or one that came before, aborts that.
    pub(crate) fn set_child(&self, signal: Option<AbortSignal>) {
        let mut side = self.0.place.side();
        let late = signal.clone().filter(|_| side.interrupted);
        side.child = signal;
        drop(side);
        late.into_iter().for_each(|signal| signal.abort());
    }

    /// What is made from it from now on is asked for by who knows that it was interrupted.
    pub(crate) fn forget_interruption(&self) {
        self.0.place.side().interrupted = false;
    }

    /// What was made from it, or could not be, is over. A failure stays.
    pub(crate) fn settle(&self, result: Result<(), ResultCode>) {
        self.0.place.side().result = match result {
            // The arguments were bad; the communicator is not.
            Ok(()) | Err(ResultCode::InvalidArgument) if self.comm.async_error().is_none() => {
                ResultCode::Success
            }
            Ok(()) => self.comm.async_error().map_or(ResultCode::Success, |e| e.code()),
            Err(code) => code,
        };
    }
}

impl Deref for Entered {
    type Target = Body;

    #[inline]
    fn deref(&self) -> &Body {
        // SAFETY: this thread set BUSY, nothing that was issued is left, and a live place that is not hollow has a body.
        unsafe { &*self.0.body() }
    }
}

impl DerefMut for Entered {
    #[inline]
    fn deref_mut(&mut self) -> &mut Body {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.0.body() }
    }
}

impl Drop for Visitor {
    #[inline]
    fn drop(&mut self) {
        // Pairs with the exchange in `visit`: the next user sees what this one did.
        self.place.state.store(self.state, Ordering::Release);
    }
}
