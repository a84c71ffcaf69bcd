//! The flight recorder on demand: at the signal that `MAYPOLE_DUMP_SIGNAL` names, the last calls of every communicator of
//! the process are written to standard error. No handler is installed unless the variable is set.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Once;

use maypole_transport::sync::{AtomicI32, AtomicU32, Ordering};

use crate::bootstrap::stream::event;
use crate::config::Config;
use crate::control::ControlShared;
use crate::process::generation;

/// What the handler writes to; -1 if there is none.
static EVENT: AtomicI32 = AtomicI32::new(-1);
/// The [`generation`] in which it was made: in a child made by fork the event is the parent's.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Installs the handler if the settings ask for one; once per process.
pub(crate) fn install() {
    let Some(signal) = Config::get().dump_signal else { return };
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let event = match event() {
            Ok(event) => event,
            Err(error) => return log::warn!("MAYPOLE_DUMP_SIGNAL has no effect: {error}"),
        };
        // Open for the life of the process, as the handler is.
        GENERATION.store(generation(), Ordering::Relaxed);
        EVENT.store(OwnedFd::into_raw_fd(event), Ordering::Release);
        // SAFETY: the structure is valid and fully set; the handler only calls `write`, which may be called anywhere.
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
    });
}

/// What to poll, or -1.
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
    // SAFETY: `errno` belongs to the thread that was interrupted and is given back; the 8 bytes are readable.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

/// Writes the recorder of these communicators.
pub(crate) fn dump<'a>(communicators: impl Iterator<Item = &'a ControlShared>) {
    let mut text = String::new();
    for shared in communicators {
        let seen = shared.record.read();
        let state = if seen.in_call { "in" } else { "after" };
        let _ = write!(
            text,
            "maypole: process {} rank {} of {}: {state} {}",
            std::process::id(),
            shared.rank,
            shared.nranks,
            seen.last()
        );
        if let Some(peer) = seen.waits_for {
            let _ = write!(text, ", waits for rank {peer}");
        }
        text.push('\n');
        for call in &seen.calls {
            let _ = write!(text, "maypole:   call {}: {}", call.sequence, call.signature);
            match call.took {
                Some(took) => _ = writeln!(text, ", {took:?} from its first long wait on"),
                None => text.push('\n'),
            }
        }
    }
    // Nobody can be told that nobody can be told.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Takes the event; true if the signal came.
pub(crate) fn asked() -> bool {
    let fd = fd();
    if fd < 0 {
        return false;
    }
    drain(&fd)
}

/// Reads an event's counter; false if it was zero.
pub(crate) fn drain(event: &impl AsRawFd) -> bool {
    let mut count = 0_u64;
    // SAFETY: 8 bytes are writable.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}
