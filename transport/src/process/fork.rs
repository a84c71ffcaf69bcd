//! Counts forks, so that objects which a child process inherited can be recognised.
//!
//! A child made by fork has none of its parent's threads, and shares descriptors and mapped memory
//! with it. An object that owns such things keeps the [`generation`] in which it was made, and does
//! nothing in another one.

use crate::sync::{AtomicBool, AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// A number that differs between a process and a child that it made by fork, once [`notice_forks`]
/// was called. It costs one load.
#[inline]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Makes [`generation`] change in children that this process makes from now on.
pub fn notice_forks() {
    static NOTICED: AtomicBool = AtomicBool::new(false);
    // Relaxed: only the value counts.
    if NOTICED.load(Ordering::Relaxed) {
        return;
    }
    // Two threads may register the handler at the same time: then the number grows by two.
    // SAFETY: the handler only adds to an atomic, which is allowed in a child of a process with
    // many threads.
    let status = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    NOTICED.store(true, Ordering::Relaxed);
    if status != 0 {
        log::warn!(
            "pthread_atfork failed ({status}): do not use communicators in a child made by fork"
        );
    }
}

/// The handler that runs in the child.
///
/// # Safety
/// None beyond its type: it may be called at any time, on any thread.
unsafe extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}
