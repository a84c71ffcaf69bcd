//! TCP sockets for all parts of the library: one way to listen, and one way to connect.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::process::occupy_standard_streams;

/// The length of the queue of connections. Many ranks connect at once, and one that finds the queue
/// full loses a second. The kernel applies its own limit.
const QUEUE: i32 = 4096;

/// Listens at an address, without blocking. The address `::` means all addresses of the host, those
/// of IPv4 too, whatever `net.ipv6.bindv6only` says.
///
/// # Errors
/// The system refuses: the address is not one of this host, is in use, or was found twice in the
/// network.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.is_ipv6() && at.ip().is_unspecified() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, QUEUE)?;
    Ok(socket.into())
}

/// Listens at those of the addresses at which the system allows it, and says in the log why it does
/// not at the others. Returns each listener with its address and port.
///
/// # Errors
/// It allows none: the error of the last.
pub fn listen_at_each(
    wanted: impl IntoIterator<Item = SocketAddr>,
) -> io::Result<Vec<(TcpListener, SocketAddr)>> {
    let mut listeners = Vec::new();
    let mut refused = None;
    for at in wanted {
        let bound = listen(at).and_then(|it| it.local_addr().map(|address| (it, address)));
        match bound {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                log::info!("cannot listen at {at}: {error}");
                refused = Some(error);
            }
        }
    }
    match refused {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

/// Begins to connect, without blocking. The socket becomes writable when the result is known.
///
/// # Errors
/// The system refuses at once.
pub fn connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(to)?;
    match rustix::net::connect(&socket, &to) {
        // An interrupted call continues in the background too.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    occupy_standard_streams();
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    /// An address for documentation, which no host has.
    const FOREIGN: &str = "203.0.113.1:0";

    #[test]
    fn an_address_that_cannot_be_bound_is_left_out() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let listeners = listen_at_each([FOREIGN, "127.0.0.1:0"].map(parse)).unwrap();
        let [(_, address)] = &listeners[..] else { panic!("{listeners:?}") };
        assert!(address.ip().is_loopback() && address.port() != 0);
        assert!(listen_at_each([parse(FOREIGN)]).is_err());
        assert!(listen_at_each([]).unwrap().is_empty());
    }

    /// Runs in a network namespace of its own, for which a process needs rights that not every
    /// environment gives.
    #[test]
    fn a_listener_at_all_addresses_hears_ipv4_under_bindv6only() {
        let run = || {
            // SAFETY: this changes only the network of this thread, which ends with the test.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return println!("SKIPPED: no network namespace can be made (not root)");
            }
            std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
            enable_loopback();
            let listener = listen("[::]:0".parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect(("127.0.0.1", port)).unwrap();
            TcpStream::connect(("::1", port)).unwrap();
        };
        std::thread::spawn(run).join().unwrap();
    }

    fn enable_loopback() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // SAFETY: all zeros is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        // SAFETY: the request is alive and of the type that the call reads.
        assert_eq!(unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) }, 0);
    }
}
