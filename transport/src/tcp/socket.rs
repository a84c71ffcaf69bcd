//! TCP sockets beyond the standard library: options, and reading and writing memory by its address.

use std::io;
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, Timespec};
use rustix::net::sockopt;

/// The result of connecting.
pub(crate) fn connect_result(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(sockopt::socket_error(socket)??)
}

/// Makes the stream send at once whatever there is, and makes the kernel check now and then whether
/// the host of an idle peer still answers. The host of a process that is merely stopped answers.
pub(crate) fn set_stream_options(socket: BorrowedFd<'_>) {
    // If an option is refused, the stream is merely slower to send or to notice a lost host.
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(5));
    let _ = sockopt::set_tcp_keepcnt(socket, 4);
}

// The calls below read and write slots by address. They use libc instead of rustix, whose slices
// would be references to memory that may be uninitialized or, while a message is repeated on
// another stream, be written by another thread.

/// A piece of memory that the kernel reads or writes.
pub(crate) fn piece(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// Writes as much as fits without waiting. Returns the number of bytes.
///
/// # Safety
/// The pieces are readable. If another thread writes them meanwhile, arbitrary bytes are sent.
pub(crate) unsafe fn send(socket: BorrowedFd<'_>, pieces: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message_header(pieces);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the caller's promise; `message` and `pieces` are alive.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
}

/// Reads what has arrived without waiting. Returns the number of bytes; 0 is the end of the stream.
///
/// # Safety
/// The pieces are writable, and no other thread uses them.
pub(crate) unsafe fn receive(
    socket: BorrowedFd<'_>,
    pieces: &mut [libc::iovec],
) -> io::Result<usize> {
    let mut message = message_header(pieces);
    // SAFETY: the caller's promise; `message` and `pieces` are alive.
    retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
}

fn message_header(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeros is a valid header of an empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Ends one or both directions of a stream. A stream that has ended before is fine.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: Shutdown) {
    let how = match how {
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    let _ = rustix::net::shutdown(socket, how);
}

/// Marks the entries that are ready now.
pub(crate) fn poll_now(entries: &mut [PollFd<'_>]) {
    // An error leaves all entries as they were: nothing is ready.
    let _ = rustix::event::poll(entries, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
}
