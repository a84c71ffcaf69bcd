//! Things of which a process has one, and a child made by fork has its own: what it inherited may be locked by a thread
//! that the child does not have.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::control;

/// A value that each process makes when it first asks for it. What a child inherits is left alone, and never freed.
pub struct PerProcess<T> {
    place: AtomicPtr<(u32, T)>,
}

impl<T: Default + Send + Sync> PerProcess<T> {
    /// Not made yet.
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self { place: AtomicPtr::new(null_mut()) }
    }

    /// This process' value.
    pub fn get(&'static self) -> &'static T {
        control::notice_forks();
        // Pairs as `per-process`: who sees the address sees the value.
        let seen = self.place.load(Ordering::Acquire);
        // SAFETY: what was stored here is never freed.
        match unsafe { seen.as_ref() } {
            Some((generation, value)) if *generation == control::generation() => value,
            _ => self.make(seen),
        }
    }

    #[cold]
    fn make(&'static self, seen: *mut (u32, T)) -> &'static T {
        let new = Box::into_raw(Box::new((control::generation(), T::default())));
        // Pairs as `per-process`.
        let stored = self.place.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire);
        let place = stored.map_or_else(
            |theirs| {
                // SAFETY: `new` was made above and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                theirs
            },
            |_| new,
        );
        // SAFETY: what was stored here is never freed.
        unsafe { &(*place).1 }
    }
}
