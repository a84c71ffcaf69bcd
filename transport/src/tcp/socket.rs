//! What the standard library lacks of TCP sockets and of waiting for many of them.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sync::{AtomicU32, Ordering};

/// Listens at an address, on any port. Many ranks may come at once, and who finds the queue full is slowed down by a
/// second: the queue is as long as the kernel allows.
pub(crate) fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((ip, 0))?;
    listener.set_nonblocking(true)?;
    // SAFETY: no memory is involved; on a listening socket it changes the length of the queue.
    check(unsafe { libc::listen(listener.as_raw_fd(), 4096) })?;
    Ok(listener)
}

/// Begins to connect; the socket becomes writable when it is decided, see [`outcome`].
pub(crate) fn connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved; the result is checked.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: a descriptor just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let result = match to {
        SocketAddr::V4(v4) => {
            // SAFETY: all zeros is a valid address.
            let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = v4.port().to_be();
            name.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            // SAFETY: `name` is alive and as long as it says.
            unsafe { libc::connect(fd, (&raw const name).cast(), size_of_val(&name) as u32) }
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all zeros is a valid address.
            let mut name: libc::sockaddr_in6 = unsafe { mem::zeroed() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = v6.port().to_be();
            name.sin6_addr.s6_addr = v6.ip().octets();
            // SAFETY: as above.
            unsafe { libc::connect(fd, (&raw const name).cast(), size_of_val(&name) as u32) }
        }
    };
    match check(result) {
        // Interrupted, it goes on in the background too.
        Err(error)
            if ![Some(libc::EINPROGRESS), Some(libc::EINTR)].contains(&error.raw_os_error()) =>
        {
            Err(error)
        }
        _ => Ok(socket),
    }
}

/// How connecting went.
pub(crate) fn outcome(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut length = size_of_val(&error) as libc::socklen_t;
    // SAFETY: `error` is writable for `length` bytes.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &mut length,
        )
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Sends at once whatever there is, and asks an idle peer now and then whether its host is still there. A peer that is merely
/// stopped answers.
pub(crate) fn tune(socket: BorrowedFd<'_>) {
    for (level, option, value) in [
        (libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    ] {
        let value: libc::c_int = value;
        let length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: `value` is alive. If it is refused, the stream is merely slower.
        unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length);
        }
    }
}

/// A piece of memory, to be read or written by the kernel.
pub(crate) fn piece(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// Writes what fits without waiting.
///
/// # Safety
/// The pieces are readable. Somebody else may write them meanwhile: then anything is sent.
pub(crate) unsafe fn send(socket: BorrowedFd<'_>, pieces: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(pieces);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the caller's promise; `message` and `pieces` are alive.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
}

/// Reads what is there without waiting; 0 is the end.
///
/// # Safety
/// The pieces are writable, and nobody else uses them.
pub(crate) unsafe fn receive(
    socket: BorrowedFd<'_>,
    pieces: &mut [libc::iovec],
) -> io::Result<usize> {
    let mut message = message(pieces);
    // SAFETY: the caller's promise; `message` and `pieces` are alive.
    retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeros is a valid header of an empty message.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

/// Tells the peer that nothing more comes from here (`Write`), or ends the stream for both.
pub(crate) fn shutdown(socket: BorrowedFd<'_>, how: std::net::Shutdown) {
    let how = match how {
        std::net::Shutdown::Write => libc::SHUT_WR,
        std::net::Shutdown::Read => libc::SHUT_RD,
        std::net::Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no memory is involved; a stream that has ended before is fine.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

/// Which of these sockets have something to read, now.
pub(crate) fn readable(entries: &mut [libc::pollfd]) {
    // SAFETY: the entries are alive, as many as it is told. An error leaves all `revents` as they were: nothing is ready.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, 0) };
}

/// The kernel's set of sockets that a thread waits for, to which others may add.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    kick: OwnedFd,
    /// Not 0: the thread will look at everything soon.
    ticking: AtomicU32,
}

/// One event: what it was registered with.
pub(crate) type Event = libc::epoll_event;

impl Poller {
    /// `kick`: what the event says that [`kick`](Self::kick) causes.
    pub(crate) fn new(kick: u64) -> io::Result<Self> {
        // SAFETY: no memory is involved; results are checked, and the descriptors owned by nobody else.
        let (epoll, event) = unsafe {
            let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
            let event = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
            (epoll, OwnedFd::from_raw_fd(event))
        };
        let poller = Self { epoll, kick: event, ticking: AtomicU32::new(0) };
        poller.control(libc::EPOLL_CTL_ADD, poller.kick.as_raw_fd(), libc::EPOLLIN as u32, kick)?;
        Ok(poller)
    }

    pub(crate) fn add(&self, fd: RawFd, events: i32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events as u32, data)
    }

    pub(crate) fn change(&self, fd: RawFd, events: i32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events as u32, data)
    }

    pub(crate) fn remove(&self, fd: RawFd) {
        // A child made by fork may hold the socket too, so closing is not enough. It was there, so this works.
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Makes the thread look at everything.
    pub(crate) fn kick(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes that are alive. If the counter is full, the thread is awake.
        unsafe { libc::write(self.kick.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// As `kick`, but some time soon will do.
    pub(crate) fn soon(&self) {
        if self.ticking.load(Ordering::SeqCst) == 0 {
            self.kick();
        }
    }

    pub(crate) fn set_ticking(&self, ticking: bool) {
        self.ticking.store(ticking.into(), Ordering::SeqCst);
    }

    /// Waits for events, at most `timeout` milliseconds unless that is negative.
    pub(crate) fn wait(&self, events: &mut [Event], timeout: i32) -> io::Result<usize> {
        // SAFETY: the events are writable, as many as it is told.
        let got = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                timeout,
            )
        };
        match check(got) {
            Ok(got) => Ok(got as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// To be called when the event of a kick has come.
    pub(crate) fn kicked(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes that are writable. It does not block.
        unsafe { libc::read(self.kick.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    fn control(&self, what: i32, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = Event { events, u64: data };
        // SAFETY: `event` is alive.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &mut event) }).map(|_| ())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
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
