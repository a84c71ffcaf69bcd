//! Values that are made at their first use, without a lock.

use std::ops::Deref;
use std::ptr::null_mut;

use crate::sync::{AtomicPtr, Ordering};

/// A value for a static that is made when it is first used, and never dropped.
///
/// Threads that need it at the same time may make it several times, and use the one that was
/// finished first. So no thread waits for another one, which a child made by fork may not have.
#[derive(Debug)]
pub struct LazyValue<T: 'static> {
    /// Null before the first use.
    value: AtomicPtr<T>,
    make: fn() -> T,
}

impl<T: Send + Sync> LazyValue<T> {
    /// A value that `make` makes.
    pub const fn new(make: fn() -> T) -> Self {
        Self { value: AtomicPtr::new(null_mut()), make }
    }

    #[cold]
    fn make(&self) -> &T {
        let new = Box::into_raw(Box::new((self.make)()));
        // Pairs as `lazy-value`.
        match self.value.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: what is stored here is never freed.
            Ok(_) => unsafe { &*new },
            Err(first) => {
                // SAFETY: `new` was made above, and no other thread has seen it; `first` is never
                // freed.
                unsafe {
                    drop(Box::from_raw(new));
                    &*first
                }
            }
        }
    }
}

impl<T: Send + Sync> Deref for LazyValue<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // Pairs as `lazy-value`: a thread that sees the address sees the value.
        // SAFETY: what is stored here is never freed.
        unsafe { self.value.load(Ordering::Acquire).as_ref() }.unwrap_or_else(|| self.make())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_see_the_same_value() {
        static VALUE: LazyValue<Box<u32>> = LazyValue::new(|| Box::new(7));
        let address = || std::thread::spawn(|| &raw const **VALUE as usize);
        let threads: Vec<_> = (0..8).map(|_| address()).collect();
        let seen: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(seen.iter().all(|address| *address == seen[0]));
        assert_eq!(**VALUE, 7);
    }

    /// With a lock, the inner use would wait for the outer one without end.
    #[test]
    fn a_use_does_not_wait_for_one_that_has_not_finished() {
        static USES: crate::sync::AtomicU32 = crate::sync::AtomicU32::new(0);
        static VALUE: LazyValue<u32> =
            LazyValue::new(|| if USES.fetch_add(1, Ordering::Relaxed) == 0 { *VALUE } else { 5 });
        assert_eq!(*VALUE, 5);
    }
}
