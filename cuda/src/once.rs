//! Values that are made once per program. A child made by fork while another thread makes such a
//! value does not wait for that thread, which it does not have, and makes the value itself.

// A value is published by one store, and loom has nothing to check beside it. This crate does not
// depend on the crate with the facade.
#![allow(clippy::disallowed_types)]

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value that the first use makes. It is never freed.
pub(crate) struct MadeOnce<T> {
    /// `pthread_once` notices forks; the types of the standard library do not.
    control: UnsafeCell<libc::pthread_once_t>,
    value: AtomicPtr<T>,
}

// SAFETY: `control` is only passed to `pthread_once`, which any thread may call.
unsafe impl<T: Send + Sync> Sync for MadeOnce<T> {}

impl<T: Send + Sync> MadeOnce<T> {
    /// A value that is not made yet.
    pub(crate) const fn new() -> Self {
        let control = UnsafeCell::new(libc::PTHREAD_ONCE_INIT);
        Self { control, value: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value. If there is none yet, `make` is called, which must [`set`](Self::set) it; other
    /// threads wait meanwhile.
    #[inline]
    pub(crate) fn get_or_make(&'static self, make: extern "C" fn()) -> Option<&'static T> {
        self.get().or_else(|| {
            // SAFETY: the control is initialised, static, and not used in another way.
            unsafe { libc::pthread_once(self.control.get(), make) };
            self.get()
        })
    }

    #[inline]
    fn get(&'static self) -> Option<&'static T> {
        // Pairs as `made-once`: a thread that sees the address sees the value.
        let seen = self.value.load(Ordering::Acquire);
        // SAFETY: what is stored here is never freed.
        unsafe { seen.as_ref() }
    }

    /// Sets the value.
    pub(crate) fn set(&self, value: T) {
        // Pairs as `made-once`.
        self.value.store(Box::into_raw(Box::new(value)), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Mutex, MutexGuard};

    use super::*;

    static VALUE: MadeOnce<u32> = MadeOnce::new();
    /// What the thread that makes the value waits for, and the sign that it is about to.
    static WAITS: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>> = Mutex::new(None);
    static PARENT: Mutex<u32> = Mutex::new(0);

    fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
        mutex.lock().expect("nobody panics with it")
    }

    extern "C" fn make() {
        if std::process::id() == *lock(&PARENT) {
            let (begun, go_on) = lock(&WAITS).take().expect("it is made once");
            begun.send(()).expect("the test waits");
            go_on.recv().expect("the test goes on");
        }
        VALUE.set(7);
    }

    /// The fork happens while another thread makes the value.
    #[test]
    fn a_child_made_by_fork_meanwhile_makes_the_value_itself() {
        *lock(&PARENT) = std::process::id();
        let (begun, has_begun) = mpsc::channel();
        let (go, go_on) = mpsc::channel();
        *lock(&WAITS) = Some((begun, go_on));
        let other = std::thread::spawn(|| VALUE.get_or_make(make).copied());
        has_begun.recv().expect("the other thread makes the value");
        // SAFETY: the child uses nothing that another thread holds but the allocator, which glibc
        // makes usable there. The alarm ends it if it waits.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::alarm(20);
                libc::_exit(i32::from(VALUE.get_or_make(make) != Some(&7)));
            }
            let mut status = 1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert_eq!(status, 0, "the child waited for a thread of its parent");
        }
        go.send(()).expect("the other thread waits");
        assert_eq!(other.join().expect("it does not panic"), Some(7));
        assert_eq!(VALUE.get_or_make(make), Some(&7));
    }
}
