//! What the standard library lacks of UNIX sockets: a deadline for connecting, who is at the other end, and passing
//! descriptors.

use std::io;
use std::mem::{self, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::time::Duration;

/// Connects to the socket with this abstract name. `WouldBlock` if the other end's queue was full for `patience`.
pub(crate) fn connect(name: &[u8], patience: Duration) -> io::Result<UnixStream> {
    // SAFETY: no memory is involved; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a descriptor just made, owned by nobody else.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // Linux bounds connecting by the time to send.
    stream.set_write_timeout(Some(patience))?;
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // An abstract name follows a zero byte and is as long as the address says.
    let Some(place) = address.sun_path.get_mut(1..=name.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    for (to, from) in place.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: `address` is alive and at least `length` bytes long, as the slice above shows.
    check(unsafe { libc::connect(fd, (&raw const address).cast(), length as libc::socklen_t) })?;
    Ok(stream)
}

/// Whether the process at the other end ran as our user when it connected (or began to listen).
pub(crate) fn same_user(stream: &UnixStream) -> io::Result<bool> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&credentials) as libc::socklen_t;
    // SAFETY: `credentials` is writable for `length` bytes.
    check(unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    })?;
    // SAFETY: a call without conditions.
    Ok(credentials.uid == unsafe { libc::geteuid() })
}

/// Room for the control message of one descriptor, aligned as its header.
type Control = [usize; 4];

/// Bytes of a control message with one descriptor; its padding would be room for a second.
// SAFETY: plain arithmetic.
const CONTROL: usize = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) } as usize;
const _: () = assert!(CONTROL <= size_of::<Control>());

/// Sends a few bytes, all or none, and a descriptor with them.
pub(crate) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control: Control = [0; 4];
    let message = header(&mut part, &mut control);
    // SAFETY: `message` has a control buffer of `CONTROL` bytes, aligned and with room for a header and a descriptor.
    unsafe {
        let entry = libc::CMSG_FIRSTHDR(&raw const message);
        (*entry).cmsg_level = libc::SOL_SOCKET;
        (*entry).cmsg_type = libc::SCM_RIGHTS;
        (*entry).cmsg_len = CONTROL as _;
        libc::CMSG_DATA(entry).cast::<libc::c_int>().write_unaligned(descriptor.as_raw_fd());
    }
    // SAFETY: all that `message` points to is alive; the bytes are only read.
    let sent =
        retry(|| unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Sends a few bytes, all or none.
pub(crate) fn tell(stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are readable for their length.
    let sent = retry(|| unsafe {
        libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags)
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives up to `bytes.len()` bytes, and the descriptor if one came with them.
pub(crate) fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control: Control = [0; 4];
    let mut message = header(&mut part, &mut control);
    // SAFETY: all that `message` points to is alive and writable for the lengths it says.
    let got = retry(|| unsafe {
        libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC)
    })?;
    // SAFETY: the kernel has filled in the header and, if it says so, one control message.
    let descriptor = unsafe {
        let entry = libc::CMSG_FIRSTHDR(&raw const message);
        let rights = !entry.is_null()
            && (*entry).cmsg_level == libc::SOL_SOCKET
            && (*entry).cmsg_type == libc::SCM_RIGHTS
            && (*entry).cmsg_len as usize == CONTROL;
        // A descriptor that is now ours alone.
        rights.then(|| {
            OwnedFd::from_raw_fd(libc::CMSG_DATA(entry).cast::<libc::c_int>().read_unaligned())
        })
    };
    if descriptor.is_none() && message.msg_flags & libc::MSG_CTRUNC != 0 {
        // There was one, and no room for it in our table.
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok((got, descriptor))
}

fn header(part: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all zeros is a valid header of an empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::null_mut();
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    message
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let Ok(done) = usize::try_from(call()) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        return Ok(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_travels() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(&here, b"x", far.as_fd()).unwrap();
        drop(far);
        let mut byte = [0; 4];
        let (got, descriptor) = receive(&there, &mut byte).unwrap();
        assert_eq!((got, byte[0]), (1, b'x'));
        near.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(near.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(descriptor.unwrap());
        assert_eq!(near.read(&mut byte).unwrap(), 0, "the descriptor was copied and not closed");
    }

    #[test]
    fn both_ends_are_the_same_user_and_names_are_bounded() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert!(same_user(&here).unwrap());
        let error = connect(&[b'x'; 108], Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = connect(b"maypole-nobody", Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
