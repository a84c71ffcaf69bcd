//! The state of an entry in a table of handles: which generation it holds, whether its object
//! exists, and whether a thread uses it.
//!
//! The C ABI gives its clients numbers instead of pointers. A handle names an entry of a table and
//! a generation; every new tenant of the entry is a new generation, so that the handle of an
//! earlier one is recognised. Entries are never freed, so a stale handle reads no freed memory.
//!
//! One word holds the generation and three flags. Beside it is a count of the calls that were
//! queued for the object and have not ended. The object itself is memory of the caller; the states
//! say who may touch it:
//!
//! | state | who may touch the object |
//! |---|---|
//! | vacant | the thread that took the entry from the list of vacant ones |
//! | creating | the thread that called [`HandleState::begin`] |
//! | idle | nobody |
//! | in use | the thread whose [`HandleState::try_acquire`] succeeded; queued calls their part |
//! | failed | nobody; there is no object |
//!
//! Pairs of a release store and an acquire load: `use` (one user of the object after the other) and
//! `calls` (the calls that have ended, and the user that found none left).

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The entry has a tenant.
const LIVE: u64 = 1;
/// A thread uses the object or creates it.
const BUSY: u64 = 2;
/// There is no object: it is being created, or its creation failed.
const ABSENT: u64 = 4;
/// Bits of the word below the generation.
const FLAG_BITS: u32 = 3;

/// The state of one entry.
#[derive(Debug)]
pub struct HandleState {
    /// The generation, then [`ABSENT`], [`BUSY`] and [`LIVE`].
    word: AtomicU64,
    /// Calls that were queued and have not ended. Only the thread that uses the object adds to it.
    calls: AtomicU32,
}

/// What an entry holds of one generation, at the moment of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// The object is being created.
    Creating,
    /// The object exists and no thread uses it.
    Idle,
    /// The object exists and a thread uses it.
    InUse,
    /// The object could not be created.
    Failed,
    /// The entry is vacant or holds another generation.
    Gone,
}

impl Default for HandleState {
    fn default() -> Self {
        Self::new()
    }
}

impl HandleState {
    /// A vacant entry that had no tenant yet.
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0), calls: AtomicU32::new(0) }
    }

    /// Begins the next generation, whose object the caller creates, and returns its number. The
    /// caller must have taken the vacant entry for itself.
    pub fn begin(&self) -> u64 {
        // Relaxed: the caller's own way to the vacant entry orders this after the last tenant.
        let generation = (self.word.load(Ordering::Relaxed) >> FLAG_BITS) + 1;
        self.word.store(live(generation) | BUSY | ABSENT, Ordering::Release);
        generation
    }

    /// From creating to idle: the object exists.
    pub fn publish(&self, generation: u64) {
        // Release of the pair `use`: the first user sees the object whole.
        self.word.store(live(generation), Ordering::Release);
    }

    /// From creating to failed.
    pub fn fail(&self, generation: u64) {
        self.word.store(live(generation) | ABSENT, Ordering::Release);
    }

    /// From idle to in use by the caller, or what the entry holds instead.
    #[inline]
    pub fn try_acquire(&self, generation: u64) -> Result<(), Tenancy> {
        // Acquire of the pair `use`: this user sees what the one before it did.
        self.exchange(live(generation), live(generation) | BUSY)
            .map_err(|word| tenancy(word, generation))
    }

    /// From in use by the caller to idle.
    #[inline]
    pub fn release(&self, generation: u64) {
        // Release of the pair `use`.
        self.word.store(live(generation), Ordering::Release);
    }

    /// Takes the entry of a failed creation, to vacate it. One caller succeeds.
    pub fn try_acquire_failed(&self, generation: u64) -> bool {
        let failed = live(generation) | ABSENT;
        self.exchange(failed, failed | BUSY).is_ok()
    }

    /// Ends the generation, which the caller uses or creates.
    pub fn vacate(&self, generation: u64) {
        self.word.store(live(generation) & !LIVE, Ordering::Release);
    }

    /// What the entry holds of that generation now.
    pub fn look(&self, generation: u64) -> Tenancy {
        tenancy(self.word.load(Ordering::Acquire), generation)
    }

    /// Counts a call that the user of the object has queued.
    pub fn begin_call(&self) {
        // Relaxed: the same thread adds and later looks, or hands the object on by `release`.
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// A queued call has ended. True if none is left.
    pub fn end_call(&self) -> bool {
        // Release of the pair `calls`: the next user sees what the call did.
        self.calls.fetch_sub(1, Ordering::Release) == 1
    }

    /// Whether queued calls are left.
    #[inline]
    pub fn has_calls(&self) -> bool {
        // Acquire of the pair `calls`.
        self.calls.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        self.word.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).map(drop)
    }
}

/// The word of an idle object.
#[inline]
const fn live(generation: u64) -> u64 {
    generation << FLAG_BITS | LIVE
}

const fn tenancy(word: u64, generation: u64) -> Tenancy {
    if word & !(BUSY | ABSENT) != live(generation) {
        return Tenancy::Gone;
    }
    match (word & ABSENT != 0, word & BUSY != 0) {
        (true, true) => Tenancy::Creating,
        (true, false) => Tenancy::Failed,
        (false, true) => Tenancy::InUse,
        (false, false) => Tenancy::Idle,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_goes_from_creation_to_its_end() {
        let state = HandleState::new();
        assert_eq!(state.look(0), Tenancy::Gone);
        let first = state.begin();
        assert_eq!(state.look(first), Tenancy::Creating);
        assert_eq!(state.try_acquire(first), Err(Tenancy::Creating));
        state.publish(first);
        assert_eq!(state.look(first), Tenancy::Idle);
        state.try_acquire(first).unwrap();
        assert_eq!(state.try_acquire(first), Err(Tenancy::InUse));
        state.release(first);
        state.try_acquire(first).unwrap();
        state.vacate(first);
        assert_eq!(state.try_acquire(first), Err(Tenancy::Gone));
        let second = state.begin();
        state.publish(second);
        assert_eq!(state.try_acquire(first), Err(Tenancy::Gone));
        assert!(state.try_acquire(second).is_ok());
    }

    #[test]
    fn a_failed_creation_is_taken_once() {
        let state = HandleState::new();
        let generation = state.begin();
        assert!(!state.try_acquire_failed(generation));
        state.fail(generation);
        assert_eq!(state.try_acquire(generation), Err(Tenancy::Failed));
        assert!(state.try_acquire_failed(generation));
        assert!(!state.try_acquire_failed(generation));
        state.vacate(generation);
        assert_eq!(state.look(generation), Tenancy::Gone);
    }

    #[test]
    fn the_end_of_the_last_call_is_told() {
        let state = HandleState::new();
        state.begin_call();
        state.begin_call();
        assert!(!state.end_call() && state.has_calls());
        assert!(state.end_call() && !state.has_calls());
    }
}

/// Loom runs every order of the steps of two threads. It reports an access to the object that is
/// not ordered after the access before it, so a missing acquire or release fails these tests.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Cell;
    use loom::sync::Arc;
    use loom::thread;

    struct Entry {
        state: HandleState,
        object: Cell<u64>,
    }

    // SAFETY: which thread may touch the object is what the models check.
    unsafe impl Send for Entry {}
    // SAFETY: as above.
    unsafe impl Sync for Entry {}

    impl Entry {
        /// An entry whose object is `value` and idle, and its generation.
        fn idle(value: u64) -> (Arc<Self>, u64) {
            let entry = Self { state: HandleState::new(), object: Cell::new(value) };
            let generation = entry.state.begin();
            entry.state.publish(generation);
            (Arc::new(entry), generation)
        }

        fn read(&self) -> u64 {
            // SAFETY: the caller uses the object; loom checks just that.
            self.object.with(|object| unsafe { *object })
        }

        fn write(&self, value: u64) {
            // SAFETY: the caller uses the object; loom checks just that.
            self.object.with_mut(|object| unsafe { *object = value });
        }
    }

    #[test]
    fn loom_handle_one_user_at_a_time() {
        loom::model(|| {
            let (entry, generation) = Entry::idle(0);
            let add = move |entry: &Entry| match entry.state.try_acquire(generation) {
                Ok(()) => {
                    entry.write(entry.read() + 1);
                    entry.state.release(generation);
                    1
                }
                Err(tenancy) => {
                    assert_eq!(tenancy, Tenancy::InUse);
                    0
                }
            };
            let other = entry.clone();
            let thread = thread::spawn(move || add(&other));
            let added = add(&entry) + thread.join().unwrap();
            entry.state.try_acquire(generation).unwrap();
            assert!(added >= 1 && entry.read() == added);
        });
    }

    #[test]
    fn loom_handle_a_published_object_is_whole() {
        loom::model(|| {
            let state = HandleState::new();
            let generation = state.begin();
            let entry = Arc::new(Entry { state, object: Cell::new(0) });
            let creator = entry.clone();
            let thread = thread::spawn(move || {
                creator.write(7);
                creator.state.publish(generation);
            });
            match entry.state.try_acquire(generation) {
                Ok(()) => assert_eq!(entry.read(), 7),
                Err(tenancy) => assert_eq!(tenancy, Tenancy::Creating),
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_handle_a_user_sees_what_ended_calls_did() {
        loom::model(|| {
            let (entry, generation) = Entry::idle(0);
            entry.state.try_acquire(generation).unwrap();
            entry.state.begin_call();
            entry.state.release(generation);
            let call = entry.clone();
            let thread = thread::spawn(move || {
                call.write(7);
                call.state.end_call();
            });
            entry.state.try_acquire(generation).unwrap();
            if !entry.state.has_calls() {
                assert_eq!(entry.read(), 7);
                entry.write(8);
            }
            entry.state.release(generation);
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_handle_a_stale_handle_never_reaches_the_next_tenant() {
        loom::model(|| {
            let (entry, first) = Entry::idle(1);
            let owner = entry.clone();
            let thread = thread::spawn(move || {
                if owner.state.try_acquire(first).is_err() {
                    return;
                }
                owner.write(0);
                owner.state.vacate(first);
                let second = owner.state.begin();
                owner.write(2);
                owner.state.publish(second);
            });
            if entry.state.try_acquire(first).is_ok() {
                assert_eq!(entry.read(), 1);
                entry.state.release(first);
            }
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_handle_a_failed_creation_is_vacated_once() {
        loom::model(|| {
            let state = HandleState::new();
            let generation = state.begin();
            state.fail(generation);
            let state = Arc::new(state);
            let other = state.clone();
            let thread = thread::spawn(move || other.try_acquire_failed(generation));
            let taken = state.try_acquire_failed(generation);
            assert!(taken ^ thread.join().unwrap());
        });
    }
}
