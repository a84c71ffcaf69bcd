//! Abstract Unix sockets between processes of one user on one host. The kernel tells each end which
//! user is at the other end, so no secret is needed.

use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};

use maypole_transport::noise::sha256;

use crate::process::occupy_standard_streams;

/// The longest name that is used as it is; the kernel's limit is 107 bytes.
const MAX_NAME: usize = 100;

/// Listens at the abstract socket of this name.
pub(super) fn listen(name: &str) -> io::Result<UnixListener> {
    occupy_standard_streams();
    let address = unix::SocketAddr::from_abstract_name(full_name(name))?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "another job of this host already listens at the abstract socket {name}; give one \
                 of the jobs another address or port"
            ),
        ),
        _ => error,
    })
}

/// Connects to the abstract socket of this name.
///
/// # Errors
/// Nobody listens there, or a process of another user does.
pub(super) fn connect(name: &str) -> io::Result<UnixStream> {
    occupy_standard_streams();
    let address = unix::SocketAddr::from_abstract_name(full_name(name))?;
    let stream = UnixStream::connect_addr(&address)?;
    check_same_user(&stream)?;
    Ok(stream)
}

/// Refuses a peer of another user.
pub(super) fn check_same_user(stream: &UnixStream) -> io::Result<()> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is writable for `len` bytes, and both outlive the call.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    if peer.uid != effective_user() {
        let what = format!("a process of another user ({}) is at the other end", peer.uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// The whole name of a socket. It contains the user, so names of two users never collide.
fn full_name(name: &str) -> String {
    let user = effective_user();
    let full = format!("maypole-launch/{user}/{name}");
    if full.len() <= MAX_NAME {
        return full;
    }
    let hash = sha256(&[full.as_bytes()]);
    let hash = u128::from_le_bytes(hash[..16].try_into().expect("16 bytes"));
    format!("maypole-launch/{user}/{hash:032x}")
}

fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}
