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

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use maypole::error::ResultCode;
use maypole::stream::{self, Issue, Stream, Ticket, Work};
use maypole::{AbortHandle, AbortSignal, Communicator};

use crate::answer::{decided, invalid, refuse};
use crate::config::Settings;
use crate::memory::Registrations;
use crate::operator::Operators;
use crate::window::Windows;

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

/// Live communicators at most.
const PLACES: usize = 1 << 15;
/// Bits of a handle below the index: zero but for one, so that handles are aligned like pointers and never NULL.
const LOW: u32 = 4;
const LOW_BITS: usize = 0b1000;
const INDEX_BITS: u32 = PLACES.trailing_zeros();

/// The place is let.
const LIVE: u64 = 1;
/// Its tenant is in use by a thread, or being made by one.
const BUSY: u64 = 2;
/// There is no communicator in it: not yet, or because making it failed.
const HOLLOW: u64 = 4;
/// The generation is above.
const GENERATION: u32 = 3;

struct Place {
    /// Generation, then [`HOLLOW`], [`BUSY`] and [`LIVE`].
    state: AtomicU64,
    rank: AtomicU32,
    /// 0 as long as it is not known.
    nranks: AtomicU32,
    /// Calls that were issued on streams and have not ended. Only who set BUSY adds to it.
    issued: AtomicU32,
    side: Mutex<Side>,
    /// Told, under the lock of `side`, when `issued` becomes 0.
    quiet: Condvar,
    /// NULL while there is none.
    body: UnsafeCell<*mut Body>,
}

/// What other threads may know of a communicator while it is in use.
struct Side {
    /// Ends its making; also its waits and those of what is being made from it.
    signal: Option<AbortSignal>,
    /// Of the thing that is being made from it.
    child: Option<AbortSignal>,
    /// Ends its waits, and tells whether they were.
    abort: Option<AbortHandle>,
    /// Of what does not block: in progress, or how it ended; and the first failure of a call.
    result: ResultCode,
    /// Its waits were ended on purpose: what is made from it from now on is ended as well, unless that is asked for afterwards.
    interrupted: bool,
    /// Aborted while it was being made: who makes it clears it away.
    abandoned: bool,
    /// Of its configuration.
    blocking: bool,
    /// `ncclCommCuDevice`
    device: c_int,
    /// It is of that CUDA device; on host memory the number has no meaning.
    cuda: bool,
    /// On which its calls on streams are issued, whatever the stream: they keep their order.
    line: Option<Stream>,
    /// Those that may not have begun.
    tickets: Vec<Ticket>,
}

impl Side {
    const fn new() -> Self {
        Self {
            signal: None,
            child: None,
            abort: None,
            result: ResultCode::Success,
            interrupted: false,
            abandoned: false,
            blocking: true,
            device: -1,
            cuda: false,
            line: None,
            tickets: Vec::new(),
        }
    }
}

// SAFETY: `body` is touched only by the thread that set BUSY, or that let the place, but for its `comm`: as long as `issued` is not
// 0 that belongs to the call on a stream that runs, of which there is one at a time, and to nobody else. The rest is
// atomics and a lock. `Body` may move between threads: `Communicator` is Send, what else it holds is.
unsafe impl Sync for Place {}

static TABLE: [AtomicPtr<Place>; PLACES] = [const { AtomicPtr::new(null_mut()) }; PLACES];
/// Indices of places that are not let, and how many places were ever made.
static VACANT: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

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

fn vacate(place: &'static Place, index: usize, state: u64) {
    *place.side() = Side::new();
    place.state.store(state & !LIVE, Ordering::Release);
    let mut vacant = VACANT.lock().unwrap_or_else(PoisonError::into_inner);
    vacant.0.push(index);
    let last = vacant.0.len() == vacant.1;
    drop(vacant);
    if last {
        stream::dismiss();
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

impl Place {
    /// Whole at all times, so a panic elsewhere under the lock does no harm.
    fn side(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn handle(index: usize, generation: u64) -> Handle {
    let value = (generation as usize) << (LOW + INDEX_BITS) | index << LOW | LOW_BITS;
    std::ptr::without_provenance_mut(value)
}

/// The place that a handle names, and the state it has if the handle is live and idle.
#[inline]
fn find(handle: Handle) -> Result<(usize, &'static Place, u64), ResultCode> {
    let value = handle.addr();
    let index = value >> LOW & (PLACES - 1);
    // Pairs with the store in `vacant_place`.
    let place = TABLE[index].load(Ordering::Acquire);
    if value & ((1 << LOW) - 1) != LOW_BITS || place.is_null() {
        return Err(not_live());
    }
    let generation = (value >> (LOW + INDEX_BITS)) as u64;
    // SAFETY: places are made once and never freed.
    Ok((index, unsafe { &*place }, generation << GENERATION | LIVE))
}

#[cold]
fn not_live() -> ResultCode {
    invalid("the communicator is not a live one: NULL, destroyed, aborted, or never initialised")
}

fn vacant_place() -> Result<(usize, &'static Place), ResultCode> {
    let mut vacant = VACANT.lock().unwrap_or_else(PoisonError::into_inner);
    let (list, made) = &mut *vacant;
    let index = match list.pop() {
        Some(index) => index,
        None if *made == PLACES => {
            return Err(refuse(
                ResultCode::SystemError,
                "too many live communicators in this process",
            ));
        }
        None => {
            let place = Box::new(Place {
                state: AtomicU64::new(0),
                rank: AtomicU32::new(0),
                nranks: AtomicU32::new(0),
                issued: AtomicU32::new(0),
                side: Mutex::new(Side::new()),
                quiet: Condvar::new(),
                body: UnsafeCell::new(null_mut()),
            });
            TABLE[*made].store(Box::into_raw(place), Ordering::Release);
            *made += 1;
            *made - 1
        }
    };
    // SAFETY: places are made once and never freed.
    Ok((index, unsafe { &*TABLE[index].load(Ordering::Acquire) }))
}

#[cfg(test)]
mod tests {
    use maypole::UniqueId;

    use super::*;

    fn alone() -> Handle {
        let reserved = reserve(Some((0, 1)), true, -1).unwrap();
        let handle = reserved.handle();
        let id = UniqueId::create().unwrap();
        reserved.fill(Communicator::init(&id, 1, 0).unwrap(), Settings::default()).unwrap();
        handle
    }

    #[test]
    fn a_handle_lives_from_reservation_to_eviction() {
        let first = alone();
        assert_eq!(identity(first), Ok((0, 1)));
        assert_eq!(enter(first).unwrap().comm.nranks(), 1);
        drop(enter(first).unwrap().evict());
        assert_eq!(enter(first).err(), Some(ResultCode::InvalidArgument));
        let second = alone();
        assert_ne!(first, second);
        assert!(identity(first).is_err() && interrupt(first).is_err());
        drop(evict(second).unwrap());
        assert!(evict(second).is_err());
    }

    #[test]
    fn one_thread_at_a_time() {
        let handle = alone();
        let entered = enter(handle).unwrap();
        assert_eq!(enter(handle).err(), Some(ResultCode::InvalidUsage));
        assert_eq!((is_busy(handle), identity(handle)), (Ok(true), Ok((0, 1))));
        assert_eq!(async_result(handle), Ok(ResultCode::Success));
        drop(entered);
        assert_eq!(is_busy(handle), Ok(false));
        drop(evict(handle).unwrap());
    }

    #[test]
    fn what_is_in_progress_is_refused_until_it_says_how_it_ended() {
        let handle = alone();
        for end in [Ok(()), Err(ResultCode::InvalidArgument), Err(ResultCode::Timeout), Ok(())] {
            let (go, gate) = std::sync::mpsc::channel::<()>();
            let deferred = visit(handle).unwrap().defer();
            let begun = deferred.start(move |_| {
                let _ = gate.recv();
                end
            });
            assert_eq!(begun, Err(ResultCode::InProgress));
            assert_eq!(enter(handle).err(), Some(ResultCode::InvalidArgument));
            assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
            drop(go);
            while async_result(handle) == Ok(ResultCode::InProgress) {
                std::thread::yield_now();
            }
            // From the moment that it says so the communicator can be used.
            assert!(enter(handle).is_ok());
            assert_eq!(async_result(handle), Ok(end.err().unwrap_or(ResultCode::Success)));
        }
        // A panic is an end as well.
        let begun = visit(handle).unwrap().defer().start(|_| panic!("on purpose"));
        assert_eq!(begun, Err(ResultCode::InProgress));
        while async_result(handle) == Ok(ResultCode::InProgress) {
            std::thread::yield_now();
        }
        assert_eq!(async_result(handle), Ok(ResultCode::InternalError));
        drop(evict(handle).unwrap());
    }

    #[test]
    fn what_is_being_made_can_be_asked_for_and_aborted() {
        let reserved = reserve(Some((1, 2)), false, 3).unwrap();
        let handle = reserved.handle();
        assert_eq!(identity(handle), Ok((1, 2)));
        assert_eq!((device(handle), blocks(handle)), (Ok(3), Ok(false)));
        assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
        assert_eq!(enter(handle).err(), Some(ResultCode::InvalidArgument));
        assert_eq!(evict(handle).err(), Some(ResultCode::InvalidArgument));
        let signal = reserved.signal().unwrap();
        assert_eq!(abort(handle), Ok(false));
        assert!(signal.is_raised());
        assert!(abort(handle).is_err() && async_result(handle).is_err());
        reserved.fail(ResultCode::RemoteError);
        assert!(evict(handle).is_err());
    }

    #[test]
    fn what_could_not_be_made_says_so_until_it_is_destroyed() {
        let reserved = reserve(None, false, -1).unwrap();
        let handle = reserved.handle();
        assert_eq!(identity(handle), Err(ResultCode::InvalidArgument));
        reserved.fail(ResultCode::Timeout);
        assert_eq!(async_result(handle), Ok(ResultCode::Timeout));
        assert_eq!(enter(handle).err(), Some(ResultCode::Timeout));
        assert!(evict(handle).unwrap().is_none());
        assert!(async_result(handle).is_err());
    }

    #[test]
    fn what_was_never_a_handle_is_refused() {
        let on_the_stack = 0;
        let pointer = std::ptr::from_ref(&on_the_stack).cast_mut().cast();
        for value in [
            null_mut(),
            pointer,
            std::ptr::without_provenance_mut(LOW_BITS),
            std::ptr::without_provenance_mut(usize::MAX),
        ] {
            assert_eq!(enter(value).err(), Some(ResultCode::InvalidArgument));
            assert!(evict(value).is_err() && abort(value).is_err());
        }
    }
}
