//! A connection of frames between two authenticated ends, and the one place where a thread sleeps.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::wire::{Frame, HEADER_BYTES, Header};

/// Read from a socket at once.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Frames over a non-blocking socket. Nothing here blocks: what the socket does not take is kept until
/// [`flush`](Self::flush). (Rust's sockets are close-on-exec and send with `MSG_NOSIGNAL`.)
pub(super) struct Framed {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Bytes of the outbox that the socket has taken.
    taken: usize,
    /// Most bytes of the body of an `Up` or `Down`.
    most: usize,
    ended: bool,
    /// Frames sent and received.
    frames: (u64, u64),
}

/// Why there will be no more frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The other end closed it, or the network did.
    Ended,
    /// What came is no frame.
    Malformed,
}

impl Framed {
    /// `most`: bytes of items that a frame may carry.
    pub(super) fn new(stream: TcpStream, most: usize) -> Self {
        // Best effort: without it small frames are slower, not wrong.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            inbox: Vec::new(),
            outbox: Vec::new(),
            taken: 0,
            most,
            ended: false,
            frames: (0, 0),
        }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// From now on items may be this large.
    pub(super) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    /// What to poll for.
    pub(super) fn poll_fd(&self) -> libc::pollfd {
        let out = if self.outbox.is_empty() { 0 } else { libc::POLLOUT };
        // An ended socket would wake the poll for ever; -1 is skipped.
        if self.ended {
            return poll_fd(-1, 0);
        }
        poll_fd(self.stream.as_raw_fd(), if self.full() { out } else { libc::POLLIN | out })
    }

    /// Lets the kernel find out that the other host is gone: by probes while nothing is sent, by a limit on what stays
    /// unacknowledged otherwise. A stopped process is not affected: its kernel answers.
    pub(super) fn keep_alive(&self) {
        let set = |level, name, value: libc::c_int| {
            // SAFETY: the descriptor is open and the value is an int, alive during the call.
            unsafe {
                // Best effort: without it the death of a host is noticed later.
                libc::setsockopt(
                    self.stream.as_raw_fd(),
                    level,
                    name,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
        };
        set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        // Seconds: 10 + 4 * 5 without an answer is the end.
        set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10);
        set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5);
        set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4);
        // Milliseconds.
        set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 30_000);
    }

    pub(super) fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.outbox);
        self.frames.0 += 1;
        self.flush();
    }

    /// Hands the socket what it takes. A broken connection shows when it is read.
    pub(super) fn flush(&mut self) {
        while self.taken < self.outbox.len() {
            match self.stream.write(&self.outbox[self.taken..]) {
                Ok(0) => break,
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What it has sent before it ended is still to be read.
                Err(_) => break,
            }
        }
        self.outbox = Vec::new();
        self.taken = 0;
    }

    /// True if nothing is left to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// True if the other end has closed the connection, or the network has.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads what is there.
    pub(super) fn fill(&mut self) {
        while !self.ended && !self.full() {
            let old = self.inbox.len();
            self.inbox.resize(old + READ_BYTES, 0);
            let read = self.stream.read(&mut self.inbox[old..]);
            self.inbox.truncate(old + read.as_ref().map_or(0, |&count| count));
            match read {
                Ok(0) => self.ended = true,
                Ok(count) if count < READ_BYTES => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
    }

    /// The next frame of what was read. What came before an end is delivered before the end is told.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        let none = if self.ended { Err(Broken::Ended) } else { Ok(None) };
        let Some(head) = self.inbox.first_chunk::<HEADER_BYTES>() else { return none };
        let header = Header::decode(head, self.most).ok_or(Broken::Malformed)?;
        let Some(body) = self.inbox.get(HEADER_BYTES..HEADER_BYTES + header.len) else {
            return none;
        };
        let frame = Frame::decode(header, body).ok_or(Broken::Malformed)?;
        self.inbox.drain(..HEADER_BYTES + header.len);
        self.frames.1 += 1;
        Ok(Some(frame))
    }

    /// Frames sent and received so far.
    pub(super) fn frames(&self) -> (u64, u64) {
        self.frames
    }

    /// Tells the other end that nothing more will come.
    pub(super) fn finish(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads what is there and forgets it.
    pub(super) fn discard(&mut self) {
        self.inbox.clear();
        self.fill();
        self.inbox.clear();
    }

    /// Bytes of memory for what was read and is not taken.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.inbox.capacity()
    }

    /// The largest frame is here: no need to read on before it is taken.
    fn full(&self) -> bool {
        self.inbox.len() >= HEADER_BYTES + self.most.max(super::wire::MOST_NOTE)
    }
}

/// What to poll a descriptor for; -1 is skipped.
pub(crate) fn poll_fd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// A new event counter, as a descriptor that is readable once it was [`ring`]ed.
pub(crate) fn event() -> std::io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an event counter readable.
pub(crate) fn ring(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: the event is open and the 8 bytes are readable. A full counter is readable as well.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Sleeps until one of the descriptors is ready, a signal comes, or the time has come.
pub(crate) fn wait(fds: &mut [libc::pollfd], until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up, so that a wait of less than a millisecond does not become a spin.
    let ms = left.min(Duration::from_secs(3600)).as_micros().div_ceil(1000) as i32;
    // SAFETY: `fds` is an array of pollfd, writable for its length.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ms) };
    if ready < 0 {
        // Interrupted (or out of kernel memory): the callers look at all sockets again, which is never wrong.
        for fd in fds.iter_mut() {
            fd.revents = libc::POLLIN;
        }
        if std::io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sends what is left, tells the ends that nothing more will come, and waits until they have read it or time is up. (To
/// close a socket with unread data would throw away what is still on its way out.)
pub(super) fn drain<'a>(framed: impl Iterator<Item = &'a mut Framed>, until: Instant) {
    let mut left: Vec<&mut Framed> = framed.collect();
    loop {
        for it in &mut left {
            it.flush();
            if it.is_flushed() {
                it.finish();
            }
            it.discard();
        }
        left.retain(|it| !it.has_ended());
        if left.is_empty() || Instant::now() >= until {
            return;
        }
        let mut fds: Vec<_> = left.iter().map(|it| it.poll_fd()).collect();
        wait(&mut fds, until);
    }
}
