//! Communicator handles. A handle is a number in the shape of a pointer: a place in a table and the generation of its
//! tenant. So a handle that was destroyed, or that never was one, is refused and nothing is read through it; a live one is
//! found without a hash, an allocation or a lock beyond one uncontended exchange.
//!
//! Places are never freed, only let again, to the next generation.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use maypole::error::ResultCode;
use maypole::{AbortHandle, Communicator};

use crate::answer::{invalid, refuse};
use crate::operator::Operators;

/// `ncclComm_t` as the client holds it.
pub(crate) type Handle = *mut c_void;

/// What belongs to a communicator.
pub(crate) struct Body {
    /// The communicator itself.
    pub(crate) comm: Communicator,
    /// The operators made on it.
    pub(crate) operators: Operators,
    /// `ncclCommFinalize` was called.
    pub(crate) finalized: bool,
}

/// Live communicators at most.
const PLACES: usize = 1 << 15;
/// Bits of a handle below the index: zero but for one, so that handles are aligned like pointers and never NULL.
const LOW: u32 = 4;
const LOW_BITS: usize = 0b1000;
const INDEX_BITS: u32 = PLACES.trailing_zeros();

/// The place is let.
const LIVE: u64 = 1;
/// Its tenant is in use by a thread.
const BUSY: u64 = 2;

struct Place {
    /// Generation, then [`BUSY`] and [`LIVE`].
    state: AtomicU64,
    rank: AtomicU32,
    nranks: AtomicU32,
    abort: Mutex<Option<AbortHandle>>,
    body: UnsafeCell<Option<Body>>,
}

// SAFETY: `body` is touched only by the thread that set BUSY, or that let the place and has not yet set LIVE; the rest is
// atomics and a lock. `Body` may move between threads: `Communicator` is Send, `Operators` is.
unsafe impl Sync for Place {}

static TABLE: [AtomicPtr<Place>; PLACES] = [const { AtomicPtr::new(null_mut()) }; PLACES];
/// Indices of places that are not let, and how many places were ever made.
static VACANT: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

/// A communicator in use by this thread; given back when dropped.
pub(crate) struct Entered {
    place: &'static Place,
    state: u64,
    index: usize,
}

/// Registers a communicator and returns its handle.
pub(crate) fn admit(comm: Communicator) -> Result<Handle, ResultCode> {
    let (index, place) = vacant_place()?;
    place.rank.store(comm.rank(), Ordering::Relaxed);
    place.nranks.store(comm.nranks(), Ordering::Relaxed);
    *place.abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(comm.abort_handle());
    let body = Body { comm, operators: Operators::new(index as u32), finalized: false };
    // SAFETY: the place is vacant and was taken off the list by this thread, so nobody else touches its body.
    unsafe { *place.body.get() = Some(body) };
    let state = (place.state.load(Ordering::Relaxed) + (1 << 2)) | LIVE;
    // Pairs with the exchange in `enter`: who sees LIVE sees the body.
    place.state.store(state, Ordering::Release);
    Ok(handle(index, state >> 2))
}

/// Takes the communicator into use by this thread. One thread at a time: another one is refused.
#[inline]
pub(crate) fn enter(handle: Handle) -> Result<Entered, ResultCode> {
    let (index, place, state) = find(handle)?;
    let exchanged =
        place.state.compare_exchange(state, state | BUSY, Ordering::Acquire, Ordering::Relaxed);
    match exchanged {
        Ok(_) => Ok(Entered { place, state, index }),
        Err(now) if now == state | BUSY => Err(refuse(
            ResultCode::InvalidUsage,
            "the communicator is in use by another thread; one thread at a time may call it",
        )),
        Err(_) => Err(not_live()),
    }
}

/// Rank and number of ranks of a communicator, in use or not.
pub(crate) fn identity(handle: Handle) -> Result<(u32, u32), ResultCode> {
    let (_, place, state) = find(handle)?;
    let identity = (place.rank.load(Ordering::Acquire), place.nranks.load(Ordering::Acquire));
    if place.state.load(Ordering::Acquire) & !BUSY == state {
        Ok(identity)
    } else {
        Err(not_live())
    }
}

/// True if the communicator is live and in use by a thread.
pub(crate) fn is_busy(handle: Handle) -> Result<bool, ResultCode> {
    let (_, place, state) = find(handle)?;
    match place.state.load(Ordering::Acquire) {
        now if now & !BUSY == state => Ok(now & BUSY != 0),
        _ => Err(not_live()),
    }
}

/// The handle by which another thread can end the communicator's waits.
pub(crate) fn abort_handle(handle: Handle) -> Result<AbortHandle, ResultCode> {
    let (_, place, state) = find(handle)?;
    let abort = place.abort.lock().unwrap_or_else(PoisonError::into_inner);
    let live = place.state.load(Ordering::Acquire) & !BUSY == state;
    abort.as_ref().filter(|_| live).cloned().ok_or_else(not_live)
}

impl Entered {
    /// Ends the tenancy and returns what belongs to the communicator; its handle is refused from now on.
    pub(crate) fn evict(self) -> Option<Body> {
        let this = std::mem::ManuallyDrop::new(self);
        *this.place.abort.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // SAFETY: this thread set BUSY.
        let body = unsafe { (*this.place.body.get()).take() };
        this.place.state.store(this.state & !LIVE, Ordering::Release);
        VACANT.lock().unwrap_or_else(PoisonError::into_inner).0.push(this.index);
        body
    }
}

impl Deref for Entered {
    type Target = Body;

    #[inline]
    fn deref(&self) -> &Body {
        // SAFETY: this thread set BUSY, and a live place has a body.
        unsafe { (*self.place.body.get()).as_ref().unwrap_unchecked() }
    }
}

impl DerefMut for Entered {
    #[inline]
    fn deref_mut(&mut self) -> &mut Body {
        // SAFETY: this thread set BUSY, and a live place has a body.
        unsafe { (*self.place.body.get()).as_mut().unwrap_unchecked() }
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        // Pairs with the exchange in `enter`: the next user sees what this one did.
        self.place.state.store(self.state, Ordering::Release);
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
    Ok((index, unsafe { &*place }, generation << 2 | LIVE))
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
                abort: Mutex::new(None),
                body: UnsafeCell::new(None),
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
        let id = UniqueId::create().unwrap();
        admit(Communicator::init(&id, 1, 0).unwrap()).unwrap()
    }

    #[test]
    fn a_handle_lives_from_admission_to_eviction() {
        let first = alone();
        assert_eq!(identity(first), Ok((0, 1)));
        assert_eq!(enter(first).unwrap().comm.nranks(), 1);
        drop(enter(first).unwrap().evict());
        assert_eq!(enter(first).err(), Some(ResultCode::InvalidArgument));
        let second = alone();
        assert_ne!(first, second);
        assert!(identity(first).is_err() && abort_handle(first).is_err());
        drop(enter(second).unwrap().evict());
    }

    #[test]
    fn one_thread_at_a_time() {
        let handle = alone();
        let entered = enter(handle).unwrap();
        assert_eq!(enter(handle).err(), Some(ResultCode::InvalidUsage));
        assert_eq!((is_busy(handle), identity(handle)), (Ok(true), Ok((0, 1))));
        assert!(abort_handle(handle).is_ok());
        drop(entered);
        assert_eq!(is_busy(handle), Ok(false));
        drop(enter(handle).unwrap().evict());
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
        }
    }
}
