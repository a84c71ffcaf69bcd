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
    sockopt::socket_error(socket)??;
    // The kernel may give the connecting socket the very port to which it connects, if nobody
    // listens there any more.
    match (rustix::net::getsockname(socket), rustix::net::getpeername(socket)) {
        (Ok(own), Ok(Some(other))) if own == other => Err(rustix::io::Errno::CONNREFUSED.into()),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, socket};

    use super::*;

    #[test]
    fn a_connection_to_itself_counts_as_refused() {
        let own = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&own, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        connect(&own, &getsockname(&own).unwrap()).unwrap();
        let refused = connect_result(own.as_fd()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        connect(&other, &listener.local_addr().unwrap()).unwrap();
        connect_result(other.as_fd()).unwrap();
    }
}
