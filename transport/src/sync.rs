//! The atomics of the whole workspace: the processor's, or loom's while a model is checked
//! (`--cfg loom`).
//!
//! All other modules take atomic types, fences and the spin hint from here, so that loom can check
//! the code that uses them. Each pair of a release store and an acquire load has a name, which a
//! comment at both ends states.

#[cfg(loom)]
pub use self::model::*;
#[cfg(not(loom))]
pub use self::real::*;
pub use core::sync::atomic::Ordering;

#[cfg(not(loom))]
mod real {
    pub use core::hint::spin_loop as spin_hint;
    pub use core::sync::atomic::fence;
    use core::{cell::UnsafeCell, ptr, time::Duration};

    pub use self::types::*;

    /// The one place that names the types of the standard library. They are aliases, not
    /// re-exports: clippy sees through a re-export and would reject its users.
    #[allow(clippy::disallowed_types)]
    mod types {
        use core::sync::atomic as std_atomic;

        /// An atomic `bool`.
        pub type AtomicBool = std_atomic::AtomicBool;
        /// An atomic `u8`.
        pub type AtomicU8 = std_atomic::AtomicU8;
        /// An atomic `u32`.
        pub type AtomicU32 = std_atomic::AtomicU32;
        /// An atomic `u64`.
        pub type AtomicU64 = std_atomic::AtomicU64;
        /// An atomic `i32`.
        pub type AtomicI32 = std_atomic::AtomicI32;
        /// An atomic `i64`.
        pub type AtomicI64 = std_atomic::AtomicI64;
        /// An atomic `usize`.
        pub type AtomicUsize = std_atomic::AtomicUsize;
        /// An atomic pointer.
        pub type AtomicPtr<T> = std_atomic::AtomicPtr<T>;
    }

    /// Orders all earlier loads and stores before all later ones, on every processor. A plain
    /// release or acquire does not order an earlier store before a later load; the doorbell needs
    /// that.
    #[inline(always)]
    pub fn full_fence() {
        // A locked operation on this thread's stack is a full barrier for ordinary memory. It is
        // cheaper than mfence, which also serializes instructions on some processors.
        // Code that makes non-temporal stores fences them itself.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: it ORs zero into a word of this thread's own stack, which is always writable.
        unsafe {
            core::arch::asm!("lock or dword ptr [rsp], 0");
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        fence(super::Ordering::SeqCst);
    }

    /// Ordinary memory that a protocol passes from one side to the other.
    #[derive(Debug)]
    #[repr(transparent)]
    pub struct Cell<T>(UnsafeCell<T>);

    impl<T> Cell<T> {
        /// A cell that holds `value`.
        pub const fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        /// Calls `read` with the address. It may be read while the protocol allows it.
        #[inline(always)]
        pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        /// Calls `write` with the address. It may be written while the protocol allows it.
        #[inline(always)]
        pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    /// A word on which threads of several processes can sleep. All zeros is a valid value.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct FutexWord(AtomicU32);

    impl FutexWord {
        /// The word itself.
        #[inline(always)]
        pub fn value(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps while the word is `expected`: until it is woken, a signal is handled or `timeout`
        /// has passed.
        pub fn wait(&self, expected: u32, timeout: Option<Duration>) {
            let timeout = timeout.map(|t| libc::timespec {
                tv_sec: t.as_secs().min(i32::MAX as u64) as libc::time_t,
                tv_nsec: t.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            // The result says why the call returned. Callers check their condition instead.
            // SAFETY: word and timespec are alive during the call; the kernel only reads them.
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

        /// Wakes all threads that sleep on the word.
        pub fn wake_all(&self) {
            // SAFETY: the word is alive; the kernel only uses its address as a name.
            unsafe {
                libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
            }
        }
    }
}

/// The same items, built on loom's types. The documentation is at those of `real`.
#[cfg(loom)]
#[allow(missing_docs)]
mod model {
    pub use loom::cell::UnsafeCell as Cell;
    pub use loom::hint::spin_loop as spin_hint;
    use loom::sync::atomic::Ordering;
    pub use loom::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
        fence,
    };
    use loom::sync::{Condvar, Mutex};

    pub fn full_fence() {
        fence(Ordering::SeqCst);
    }

    /// As in the kernel: a waiter compares the word and goes to sleep under the lock of the word's
    /// queue, and a waker takes that lock too.
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
