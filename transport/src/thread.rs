//! The threads of this crate.

use std::thread::{Builder, JoinHandle};

use crate::error::LinkError;

/// Enough for any logger; pages that are not used cost nothing.
const STACK: usize = 256 << 10;

/// Starts a thread that takes no signals: handlers of the program run on the program's threads.
pub(crate) fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, LinkError> {
    // SAFETY: the sets are alive and all zeros is a valid one; masks are this thread's own.
    let result = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        let masked = libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) == 0;
        let result = Builder::new().name(name.into()).stack_size(STACK).spawn(run);
        if masked {
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        }
        result
    };
    result.map_err(|error| LinkError::system("pthread_create", &error))
}
