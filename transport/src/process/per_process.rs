//! Values that exist once per process: a child made by fork makes its own, because what it
//! inherited may be locked by a thread that the child does not have.

use std::ptr::null_mut;

use crate::sync::{AtomicPtr, Ordering};

use super::fork::{generation, notice_forks};

/// A value that each process makes when it first asks for it. A child made by fork does not touch
/// or free the one that it inherited.
pub struct PerProcess<T> {
    /// The generation in which the value was made, and the value. Null before the first use.
    value: AtomicPtr<(u32, T)>,
}

impl<T: Default + Send + Sync> PerProcess<T> {
    /// A value that is not made yet.
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self { value: AtomicPtr::new(null_mut()) }
    }

    /// The value of this process, made now if this is the first use.
    pub fn get(&'static self) -> &'static T {
        notice_forks();
        self.get_if_made().unwrap_or_else(|| self.make())
    }

    /// The value of this process, if it was made.
    pub fn get_if_made(&'static self) -> Option<&'static T> {
        // Pairs as `per-process`: a thread that sees the address sees the value.
        let seen = self.value.load(Ordering::Acquire);
        // SAFETY: what is stored here is never freed.
        let (made_in, value) = unsafe { seen.as_ref() }?;
        (*made_in == generation()).then_some(value)
    }

    #[cold]
    fn make(&'static self) -> &'static T {
        let new = Box::into_raw(Box::new((generation(), T::default())));
        let mut seen = self.value.load(Ordering::Acquire);
        loop {
            // SAFETY: what is stored here is never freed.
            if let Some((made_in, value)) = unsafe { seen.as_ref() }
                && *made_in == generation()
            {
                // SAFETY: `new` was made above, and no other thread has seen it.
                drop(unsafe { Box::from_raw(new) });
                return value;
            }
            // Pairs as `per-process`.
            match self.value.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: what is stored here is never freed.
                Ok(_) => return unsafe { &(*new).1 },
                Err(other) => seen = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The test holds the lock during the fork, so that no moment has to be hit.
    #[test]
    fn a_child_made_by_fork_has_a_value_and_a_lock_of_its_own() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        let mut held = VALUE.get().lock().unwrap();
        *held = 5;
        // SAFETY: the child uses nothing that another thread could hold but the allocator, which
        // glibc makes usable there. The alarm ends it if it waits.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::alarm(20);
                let fresh = VALUE.get_if_made().is_none() && *VALUE.get().lock().unwrap() == 0;
                libc::_exit(i32::from(!fresh));
            }
            let mut status = 1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert_eq!(status, 0, "the child waited, or saw the value of its parent");
        }
        assert_eq!(*held, 5);
    }
}
