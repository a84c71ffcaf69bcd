//! Starts the threads of the library.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread called `name` (15 bytes of it show in tools) with a stack of `stack` bytes, or
/// of the default size. The thread takes no signals: the program's signal handlers run on the
/// program's threads.
///
/// # Errors
/// That of the system, where no thread can be made.
pub(crate) fn spawn_thread<T: Send + 'static>(
    name: &str,
    stack: Option<usize>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let mut builder = Builder::new().name(name.to_owned());
    if let Some(bytes) = stack {
        builder = builder.stack_size(bytes);
    }
    with_signals_blocked(|| builder.spawn(run))
}

/// Runs `spawn` with all signals blocked; a thread that it starts inherits that.
fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    // SAFETY: all zeros is a valid signal set, and both sets live across the calls. Only the mask
    // of the calling thread changes, and it is restored.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let blocked =
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) == 0;
        let result = spawn();
        if blocked {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_thread_blocks_signals_and_its_maker_does_not() {
        let is_blocked = || {
            // SAFETY: all zeros is a valid set; the call only reads the mask of this thread into
            // it.
            unsafe {
                let mut mask: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
                libc::sigismember(&raw const mask, libc::SIGUSR2) == 1
            }
        };
        assert!(!is_blocked());
        let thread = spawn_thread("maypole-test", None, is_blocked).unwrap();
        assert!(thread.join().unwrap());
        assert!(!is_blocked());
    }
}
