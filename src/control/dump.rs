//! The flight recorder on demand: at the signal that `MAYPOLE_DUMP_SIGNAL` names, the last calls of
//! all communicators of the process are written to standard error. No signal handler is installed
//! unless the variable is set.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use maypole_transport::sync::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use crate::bootstrap::poll::{new_event, take_event};
use crate::config::Config;
use crate::control::ControlShared;
use crate::process::generation;

/// The descriptor of the event that the handler signals; -1 if there is none.
static EVENT: AtomicI32 = AtomicI32::new(-1);
/// The [`generation`] in which the event was made: a child made by fork must not use the event of
/// its parent.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Installs the handler, once per process, if the settings ask for one.
pub(crate) fn install() {
    let Some(signal) = Config::get().dump_signal else { return };
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.swap(true, Ordering::Relaxed) {
        let event = match new_event() {
            Ok(event) => event,
            Err(error) => return log::warn!("MAYPOLE_DUMP_SIGNAL has no effect: {error}"),
        };
        // The event is never closed, because the handler stays installed.
        GENERATION.store(generation(), Ordering::Relaxed);
        EVENT.store(OwnedFd::into_raw_fd(event), Ordering::Release);
        // SAFETY: the structure is valid and fully set. The handler only loads atomics and calls
        // `write`, which is allowed in a signal handler.
        let status = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if status != 0 {
            let error = std::io::Error::last_os_error();
            log::warn!("MAYPOLE_DUMP_SIGNAL: signal {signal} cannot be handled: {error}");
        }
    }
}

/// The descriptor to poll, or -1.
pub(crate) fn fd() -> RawFd {
    let event = EVENT.load(Ordering::Acquire);
    if GENERATION.load(Ordering::Relaxed) == generation() { event } else { -1 }
}

extern "C" fn on_signal(_: libc::c_int) {
    let fd = fd();
    if fd < 0 {
        return;
    }
    let one = 1_u64;
    // SAFETY: `errno` of the interrupted thread is restored; the 8 bytes are readable.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

/// Writes the flight recorders of these communicators to standard error.
pub(crate) fn dump<'a>(communicators: impl Iterator<Item = &'a ControlShared>) {
    let mut text = String::new();
    for shared in communicators {
        let snapshot = shared.record.read();
        let state = if snapshot.in_call { "in" } else { "after" };
        let _ = write!(
            text,
            "maypole: process {} rank {} of {}: {state} {}",
            std::process::id(),
            shared.rank,
            shared.nranks,
            snapshot.last()
        );
        if let Some(peer) = snapshot.waits_for {
            let _ = write!(text, ", waits for rank {peer}");
        }
        text.push('\n');
        for call in &snapshot.calls {
            let _ = write!(text, "maypole:   call {}: {}", call.sequence, call.signature);
            match call.took {
                Some(took) => _ = writeln!(text, ", {took:?} from its first long wait on"),
                None => text.push('\n'),
            }
        }
    }
    // An error of standard error cannot be reported anywhere.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Whether the signal came since the last call of this function.
pub(crate) fn is_requested() -> bool {
    let fd = fd();
    if fd < 0 {
        return false;
    }
    take_event(&fd)
}
