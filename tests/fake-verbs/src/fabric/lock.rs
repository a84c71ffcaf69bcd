//! A lock in shared memory that survives the death of the process that holds it.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::process;
use crate::sync::{Acquire, AtomicU32, Relaxed, Release};

/// How often a waiting thread yields before it looks whether the holder still lives.
const YIELDS_PER_CHECK: u32 = 1000;

/// Plain data: all bit patterns that the fabric writes are valid, zeros too, and no value refers to
/// the memory of one process.
pub(crate) trait Plain: Copy {}

impl Plain for u32 {}

/// A value in shared memory that one thread of one process uses at a time.
///
/// The word is 0, or the number of the process that holds it, plus one. If that process dies, the
/// next one takes the lock over; every change under a lock is made in an order that leaves the
/// value usable after each store.
#[repr(C)]
pub(crate) struct Lock<T> {
    holder: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives out the value to one thread at a time.
unsafe impl<T: Plain> Sync for Lock<T> {}

impl<T: Plain> Lock<T> {
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let me = process::me() + 1;
        // Pair "lock": a new holder sees what the last one wrote.
        if self.holder.compare_exchange(0, me, Acquire, Relaxed).is_err() {
            self.wait(me);
        }
        Guard { lock: self }
    }

    #[cold]
    fn wait(&self, me: u32) {
        let mut turns = 0u32;
        loop {
            let holder = self.holder.load(Relaxed);
            if holder == 0 && self.holder.compare_exchange(0, me, Acquire, Relaxed).is_ok() {
                return;
            }
            turns += 1;
            if turns < 50 {
                std::hint::spin_loop();
                continue;
            }
            std::thread::yield_now();
            let lost = turns.is_multiple_of(YIELDS_PER_CHECK)
                && holder != 0
                && !process::is_alive(holder - 1);
            if lost && self.holder.compare_exchange(holder, me, Acquire, Relaxed).is_ok() {
                return;
            }
        }
    }
}

/// Exclusive use of the value of a lock.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists while this thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // Pair "lock".
        self.lock.holder.store(0, Release);
    }
}

impl<T> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}
