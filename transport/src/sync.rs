//! The atomics of this crate: the processor's, or loom's when a model is checked (`--cfg loom`).
//!
//! Every pair of a release store and an acquire load has a name, written in a comment at both ends.

#[cfg(loom)]
pub use self::model::{Cell, FutexWord, full_fence, spin_hint};
#[cfg(not(loom))]
pub use self::real::{Cell, FutexWord, full_fence, spin_hint};
pub use core::sync::atomic::Ordering;
#[cfg(not(loom))]
pub use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence,
};
#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence,
};

#[cfg(not(loom))]
mod real {
    pub use core::hint::spin_loop as spin_hint;
    use core::sync::atomic::AtomicU32;
    use core::{cell::UnsafeCell, ptr, time::Duration};

    /// Orders every earlier store before every later load (and all else), on every processor: what the doorbell needs.
    #[inline(always)]
    pub fn full_fence() {
        // A locked operation on the own stack is a full barrier for ordinary memory and cheaper than mfence, which
        // some processors also serialize. Non-temporal stores are fenced by whoever makes them.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: it adds zero to a word of this thread's own stack, which is always writable.
        unsafe {
            core::arch::asm!("lock or dword ptr [rsp], 0");
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        core::sync::atomic::fence(super::Ordering::SeqCst);
    }

    /// Plain memory that a protocol hands from one side to the other.
    #[derive(Debug)]
    #[repr(transparent)]
    pub struct Cell<T>(UnsafeCell<T>);

    impl<T> Cell<T> {
        /// A cell that holds `value`.
        pub const fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        /// The memory, to be read as long as the protocol grants it.
        #[inline(always)]
        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        /// The memory, to be written as long as the protocol grants it.
        #[inline(always)]
        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    /// A word on which threads of several processes sleep. All zeros is a valid one.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct FutexWord(AtomicU32);

    impl FutexWord {
        /// The word itself.
        #[inline(always)]
        pub fn value(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps as long as the word is `expected`, until it is woken, a signal is handled or the time is over.
        pub fn wait(&self, expected: u32, timeout: Option<Duration>) {
            let timeout = timeout.map(|t| libc::timespec {
                tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
                tv_nsec: t.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            // The result says why it returned; callers look at what they wait for instead.
            // SAFETY: the word and the timespec are alive during the call; the kernel only reads them.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.0.as_ptr(),
                    libc::FUTEX_WAIT,
                    expected,
                    timeout,
                );
            }
        }

        /// Wakes all who sleep on the word.
        pub fn wake_all(&self) {
            // SAFETY: the word is alive; the kernel does not access it, it is only a name here.
            unsafe {
                libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
            }
        }
    }
}

/// The same in loom's terms; documented at the real ones.
#[cfg(loom)]
#[allow(missing_docs)]
mod model {
    pub use loom::cell::UnsafeCell as Cell;
    pub use loom::hint::spin_loop as spin_hint;
    use loom::sync::atomic::{AtomicU32, Ordering, fence};
    use loom::sync::{Condvar, Mutex};

    pub fn full_fence() {
        fence(Ordering::SeqCst);
    }

    /// The kernel compares the word and goes to sleep under the lock of the word's queue, which the waker takes too.
    #[derive(Debug, Default)]
    pub struct FutexWord {
        word: AtomicU32,
        queue: Mutex<()>,
        wakes: Condvar,
    }

    impl FutexWord {
        pub fn value(&self) -> &AtomicU32 {
            &self.word
        }

        pub fn wait(&self, expected: u32, _: Option<core::time::Duration>) {
            let queue = self.queue.lock().unwrap();
            if self.word.load(Ordering::SeqCst) == expected {
                drop(self.wakes.wait(queue).unwrap());
            }
        }

        pub fn wake_all(&self) {
            let _queue = self.queue.lock().unwrap();
            self.wakes.notify_all();
        }
    }
}
