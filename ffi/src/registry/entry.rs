//! The table of places that handles name, and what is known of the communicator in each.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::stream::{self, Stream, Ticket};
use maypole::{AbortHandle, AbortSignal};

use super::{Body, Handle};
use crate::boundary::{invalid, refuse};

/// Live communicators at most.
pub(super) const PLACES: usize = 1 << 15;
/// Bits of a handle below the index: zero but for one, so that handles are aligned like pointers and never NULL.
pub(super) const LOW: u32 = 4;
pub(super) const LOW_BITS: usize = 0b1000;
pub(super) const INDEX_BITS: u32 = PLACES.trailing_zeros();

/// The place is let.
pub(super) const LIVE: u64 = 1;
/// Its tenant is in use by a thread, or being made by one.
pub(super) const BUSY: u64 = 2;
/// There is no communicator in it: not yet, or because making it failed.
pub(super) const HOLLOW: u64 = 4;
/// The generation is above.
pub(super) const GENERATION: u32 = 3;

pub(super) struct Place {
    /// Generation, then [`HOLLOW`], [`BUSY`] and [`LIVE`].
    pub(super) state: AtomicU64,
    pub(super) rank: AtomicU32,
    /// 0 as long as it is not known.
    pub(super) nranks: AtomicU32,
    /// Calls that were issued on streams and have not ended. Only who set BUSY adds to it.
    pub(super) issued: AtomicU32,
    pub(super) side: Mutex<Side>,
    /// Told, under the lock of `side`, when `issued` becomes 0.
    pub(super) quiet: Condvar,
    /// NULL while there is none.
    pub(super) body: UnsafeCell<*mut Body>,
}

/// What other threads may know of a communicator while it is in use.
pub(super) struct Side {
    /// Ends its making; also its waits and those of what is being made from it.
    pub(super) signal: Option<AbortSignal>,
    /// Of the thing that is being made from it.
    pub(super) child: Option<AbortSignal>,
    /// Ends its waits, and tells whether they were.
    pub(super) abort: Option<AbortHandle>,
    /// Of what does not block: in progress, or how it ended; and the first failure of a call.
    pub(super) result: ResultCode,
    /// Its waits were ended on purpose: what is made from it from now on is ended as well, unless that is asked for afterwards.
    pub(super) interrupted: bool,
    /// Aborted while it was being made: who makes it clears it away.
    pub(super) abandoned: bool,
    /// Of its configuration.
    pub(super) blocking: bool,
    /// `ncclCommCuDevice`
    pub(super) device: c_int,
    /// It is of that CUDA device; on host memory the number has no meaning.
    pub(super) cuda: bool,
    /// On which its calls on streams are issued, whatever the stream: they keep their order.
    pub(super) line: Option<Stream>,
    /// Those that may not have begun.
    pub(super) tickets: Vec<Ticket>,
}

impl Side {
    pub(super) const fn new() -> Self {
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

impl Place {
    /// Whole at all times, so a panic elsewhere under the lock does no harm.
    pub(super) fn side(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn handle(index: usize, generation: u64) -> Handle {
    let value = (generation as usize) << (LOW + INDEX_BITS) | index << LOW | LOW_BITS;
    std::ptr::without_provenance_mut(value)
}

/// The place that a handle names, and the state it has if the handle is live and idle.
#[inline]
pub(super) fn find(handle: Handle) -> Result<(usize, &'static Place, u64), ResultCode> {
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
pub(super) fn not_live() -> ResultCode {
    invalid("the communicator is not a live one: NULL, destroyed, aborted, or never initialised")
}

pub(super) fn vacant_place() -> Result<(usize, &'static Place), ResultCode> {
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

pub(super) fn vacate(place: &'static Place, index: usize, state: u64) {
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
