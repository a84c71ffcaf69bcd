//! UNIX sockets beyond the standard library: a deadline for connecting, the user at the other end,
//! and passing descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Connects to the socket with this abstract name. Returns `WouldBlock` if the listener's queue was
/// full for `patience`.
pub(crate) fn connect(name: &[u8], patience: Duration) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let stream = UnixStream::from(socket);
    // Linux uses the send timeout for connecting.
    stream.set_write_timeout(Some(patience))?;
    let address = SocketAddrUnix::new_abstract_name(name)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    rustix::net::connect(&stream, &address)?;
    Ok(stream)
}

/// Whether the process at the other end ran as this user when it connected or began to listen.
pub(crate) fn is_same_user(stream: &UnixStream) -> io::Result<bool> {
    // Not `rustix::net::sockopt::socket_peercred`: its process id cannot be 0, which the kernel
    // reports for a process of another PID namespace.
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&credentials) as libc::socklen_t;
    // SAFETY: `credentials` is writable for `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(credentials.uid == rustix::process::geteuid().as_raw())
}

/// Sends all of a few bytes, or none, together with a descriptor.
pub(crate) fn send_with_descriptor(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "room for a descriptor");
    send_all(stream, bytes, &mut control)
}

/// Sends all of a few bytes, or none.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    send_all(stream, bytes, &mut SendAncillaryBuffer::default())
}

fn send_all(
    stream: &UnixStream,
    bytes: &[u8],
    control: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> io::Result<()> {
    let pieces = [IoSlice::new(bytes)];
    let sent =
        retry_on_intr(|| rustix::net::sendmsg(stream, &pieces, control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives up to `bytes.len()` bytes, and the descriptor if one came with them.
pub(crate) fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received =
        retry_on_intr(|| rustix::net::recvmsg(stream, &mut pieces, &mut control, flags))?;
    // Any further descriptors are closed here.
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptor.or(descriptors.into_iter().next());
        }
    }
    if descriptor.is_none() && received.flags.contains(ReturnFlags::CTRUNC) {
        // A descriptor came, but the process has no room for it.
        return Err(Errno::MFILE.into());
    }
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_is_passed() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        send_with_descriptor(&sender, b"x", passed.as_fd()).unwrap();
        drop(passed);
        let mut byte = [0; 4];
        let (got, descriptor) = receive(&receiver, &mut byte).unwrap();
        assert_eq!((got, byte[0]), (1, b'x'));
        let descriptor = descriptor.unwrap();
        let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "it would be inherited by programs");
        kept.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(kept.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(descriptor);
        assert_eq!(kept.read(&mut byte).unwrap(), 0, "the descriptor was copied and not closed");
    }

    #[test]
    fn further_descriptors_are_closed() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        let descriptors = [passed.as_fd(); 3];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        send_all(&sender, b"x", &mut control).unwrap();
        drop(passed);
        let (_, descriptor) = receive(&receiver, &mut [0; 4]).unwrap();
        drop(descriptor.unwrap());
        assert_eq!(kept.read(&mut [0; 4]).unwrap(), 0, "a descriptor was not closed");
    }

    #[test]
    fn both_ends_are_the_same_user_and_names_are_bounded() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(is_same_user(&stream).unwrap());
        let error = connect(&[b'x'; 108], Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = connect(b"maypole-nobody", Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
