//! Starts the threads of this crate with all signals blocked.

use std::thread::{Builder, JoinHandle};

use crate::error::LinkError;

/// Stack size in bytes. It suffices for any logger; pages that are not touched cost nothing.
const STACK_BYTES: usize = 256 << 10;

/// Starts a thread that receives no signals, so that the program's signal handlers run on the
/// program's own threads.
pub(crate) fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, LinkError> {
    // SAFETY: the signal sets are alive, and all zeros is a valid one. The mask belongs to this
    // thread and is restored below.
    let result = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        let masked = libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) == 0;
        let result = Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(run);
        if masked {
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        }
        result
    };
    result.map_err(|error| LinkError::system("pthread_create", error))
}
