//! Sleeping on several descriptors at once, and event counters by which other threads end the
//! sleep.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::process::occupy_standard_streams;

/// The entry with which to poll a descriptor for `events`. A descriptor of -1 is skipped.
pub(crate) fn poll_fd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Sleeps until one of the descriptors is ready, a signal arrives, or the time `until` has come.
pub(crate) fn wait(fds: &mut [libc::pollfd], until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
    let ms = left.min(Duration::from_secs(3600)).as_micros().div_ceil(1000) as i32;
    // SAFETY: `fds` is an array of pollfd, writable for its length.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ms) };
    if ready < 0 {
        // Interrupted, or out of kernel memory. The callers then look at all sockets, which is
        // always correct.
        for fd in fds.iter_mut() {
            fd.revents = libc::POLLIN;
        }
        if std::io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Marks the entries that are ready now, without waiting.
pub(crate) fn poll_now(fds: &mut [libc::pollfd]) {
    // SAFETY: `fds` is an array of pollfd, writable for its length; a timeout of 0 does not wait.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) };
}

/// Makes an event counter: a descriptor that becomes readable when it is [signalled](signal_event).
///
/// # Errors
/// That of `eventfd`, where the process has no descriptor left.
pub(crate) fn new_event() -> std::io::Result<OwnedFd> {
    occupy_standard_streams();
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an event counter readable.
pub(crate) fn signal_event(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: the event is open and the 8 bytes are readable. A full counter refuses the write, but
    // is readable too.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Resets an event counter. False if it was not signalled.
pub(crate) fn take_event(event: &impl AsRawFd) -> bool {
    let mut count = 0_u64;
    // SAFETY: the 8 bytes are writable.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}
