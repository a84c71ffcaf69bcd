//! A connection over which two authenticated ends send each other frames, encrypted.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use maypole_control::frame::{ControlFrame, FrameHeader, HEADER_BYTES, MOST_SMALL_BYTES};
use maypole_transport::closed_in_child::ClosedInChild;
use maypole_transport::noise::Session;

use super::poll::{poll_fd, wait};

/// Bytes that one read takes from a socket.
pub(super) const READ_BYTES: usize = 64 << 10;

/// A connected socket whose handshake has passed, with its keys.
pub(crate) struct SecureStream {
    pub(crate) stream: TcpStream,
    pub(crate) session: Session,
}

/// Frames over a non-blocking socket, as encrypted records. No function waits: what the socket does
/// not take is kept until [`flush`](Self::flush). (Sockets of Rust's standard library are
/// close-on-exec and send with `MSG_NOSIGNAL`.)
pub(super) struct FrameStream {
    _closed_in_child: ClosedInChild,
    stream: TcpStream,
    session: Session,
    /// Bytes that were received and are not yet a whole record.
    encrypted: Vec<u8>,
    /// Bytes that were decrypted and not yet taken as frames.
    received: Vec<u8>,
    /// Encrypted bytes to be sent.
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket has taken.
    taken: usize,
    /// Most bytes of the body of an `Up` or `Down` frame.
    most_items: usize,
    ended: bool,
    /// A record was changed on its way.
    forged: bool,
    /// Numbers of frames sent and received.
    frames: (u64, u64),
}

/// Why no more frames will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The other end closed the connection, or the network broke it.
    Closed,
    /// The bytes that came are not a frame, or were changed on their way.
    Malformed,
}

impl FrameStream {
    /// Wraps a connection. A frame may carry `most_items` bytes of items.
    pub(super) fn new(secure: SecureStream, most_items: usize) -> Self {
        let SecureStream { stream, session } = secure;
        // An error is ignored: small frames are then slower, not wrong.
        let _ = stream.set_nodelay(true);
        Self {
            _closed_in_child: ClosedInChild::new(&stream),
            stream,
            session,
            encrypted: Vec::new(),
            received: Vec::new(),
            outgoing: Vec::new(),
            taken: 0,
            most_items,
            ended: false,
            forged: false,
            frames: (0, 0),
        }
    }

    /// The address of the other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// Changes how many bytes of items a frame may carry.
    pub(super) fn set_most_items(&mut self, most_items: usize) {
        self.most_items = most_items;
    }

    /// The entry with which to poll this connection.
    pub(super) fn poll_fd(&self) -> libc::pollfd {
        let out = if self.outgoing.is_empty() { 0 } else { libc::POLLOUT };
        // A socket that is not read any more would always be ready and keep the poll from sleeping;
        // -1 is skipped.
        if self.ended || self.forged {
            return poll_fd(-1, 0);
        }
        poll_fd(self.stream.as_raw_fd(), if self.full() { out } else { libc::POLLIN | out })
    }

    /// Makes the kernel end the connection when the other host is gone and nothing is sent: it then
    /// sends probes. A stopped process does not end the connection, because its kernel answers.
    ///
    /// What is sent to a host that is gone ends the connection only after a quarter of an hour;
    /// [`end_if_host_is_gone`](Self::end_if_host_is_gone) is for that. `TCP_USER_TIMEOUT` is not:
    /// it also ends connections to processes that are stopped and so have no room for more.
    pub(super) fn enable_keep_alive(&self) {
        enable_keep_alive(&self.stream);
    }

    /// Ends the connection if the other host has long not acknowledged anything that was sent to
    /// it.
    pub(super) fn end_if_host_is_gone(&mut self) {
        // SAFETY: all zeros is a valid value.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the descriptor is open, and `info` is writable for `len` bytes. An older kernel
        // writes less.
        let status = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut len,
            )
        };
        self.ended |= status == 0 && is_host_gone(&info);
    }

    /// Sends a frame, or keeps what the socket does not take of it.
    pub(super) fn send(&mut self, frame: &ControlFrame) {
        let mut plain = Vec::new();
        frame.encode(&mut plain);
        self.session.write_records(&plain, &mut self.outgoing);
        self.frames.0 += 1;
        self.flush();
    }

    /// Hands the socket as many bytes as it takes. That a connection is broken is noticed when it
    /// is read.
    pub(super) fn flush(&mut self) {
        while self.taken < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.taken..]) {
                Ok(0) => break,
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The connection is broken, but what the other end sent before can still be read.
                Err(_) => break,
            }
        }
        self.outgoing = Vec::new();
        self.taken = 0;
    }

    /// True if no bytes are left to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// True if the other end has closed the connection, or the network has.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads the bytes that have come.
    pub(super) fn fill(&mut self) {
        while !self.ended && !self.forged && !self.full() {
            let old = self.encrypted.len();
            self.encrypted.resize(old + READ_BYTES, 0);
            let read = self.stream.read(&mut self.encrypted[old..]);
            self.encrypted.truncate(old + read.as_ref().map_or(0, |&count| count));
            let records = self.session.read_records(&mut self.encrypted, &mut self.received);
            self.forged = records.is_err();
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

    /// Takes the next frame of the bytes that were read. Frames that came before the connection
    /// ended, or before a record was changed, are returned first.
    pub(super) fn next(&mut self) -> Result<Option<ControlFrame>, StreamEnd> {
        let none = match (self.forged, self.ended) {
            (true, _) => Err(StreamEnd::Malformed),
            (false, true) => Err(StreamEnd::Closed),
            (false, false) => Ok(None),
        };
        let Some(head) = self.received.first_chunk::<HEADER_BYTES>() else { return none };
        let header = FrameHeader::decode(head, self.most_items).ok_or(StreamEnd::Malformed)?;
        let Some(body) = self.received.get(HEADER_BYTES..HEADER_BYTES + header.len) else {
            return none;
        };
        let frame = ControlFrame::decode(header, body).ok_or(StreamEnd::Malformed)?;
        self.received.drain(..HEADER_BYTES + header.len);
        self.frames.1 += 1;
        Ok(Some(frame))
    }

    /// Reads what has come, sends what waits, and takes all frames: in their order, and then the
    /// end of the connection if it has ended.
    pub(super) fn take_all(&mut self) -> (Vec<ControlFrame>, Option<StreamEnd>) {
        self.fill();
        self.flush();
        let mut frames = Vec::new();
        loop {
            match self.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(end) => return (frames, Some(end)),
            }
        }
    }

    /// Numbers of frames sent and received so far.
    pub(super) fn frame_counts(&self) -> (u64, u64) {
        self.frames
    }

    /// Tells the other end that this end will send nothing more.
    pub(super) fn shut_down_sending(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads the bytes that have come and drops them.
    pub(super) fn discard(&mut self) {
        self.received.clear();
        self.fill();
        self.received.clear();
        // Nothing more is read of it.
        self.ended |= self.forged;
    }

    /// Bytes of memory that hold what was read and not taken.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.received.capacity() + self.encrypted.capacity()
    }

    /// Whether a frame of the largest size is here, so that reading on can wait until it is taken.
    fn full(&self) -> bool {
        self.received.len() >= HEADER_BYTES + self.most_items.max(MOST_SMALL_BYTES)
    }
}

/// Sends what is left, shuts down sending, and waits until the other ends have closed too or
/// `until` has come. (Closing a socket that has unread data would discard the bytes that are still
/// being sent.)
pub(super) fn close_gracefully<'a>(
    connections: impl Iterator<Item = &'a mut FrameStream>,
    until: Instant,
) {
    let mut left: Vec<&mut FrameStream> = connections.collect();
    loop {
        for connection in &mut left {
            connection.flush();
            if connection.is_flushed() {
                connection.shut_down_sending();
            }
            connection.discard();
        }
        left.retain(|connection| !connection.has_ended());
        if left.is_empty() || Instant::now() >= until {
            return;
        }
        let mut fds: Vec<_> = left.iter().map(|connection| connection.poll_fd()).collect();
        wait(&mut fds, until);
    }
}

fn enable_keep_alive(stream: &TcpStream) {
    let set = |level, name, value: libc::c_int| {
        // SAFETY: the descriptor is open, and the value is an int that lives during the call.
        unsafe {
            // An error is ignored: the death of the host is then noticed later.
            libc::setsockopt(
                stream.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    // In seconds. The connection ends after 10 + 4 * 5 seconds without an answer.
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4);
}

/// How long a host may acknowledge nothing, in milliseconds.
const SILENCE: u32 = 30_000;
/// How many packets in a row it may leave without an answer. The kernel of a process that is
/// stopped answers each: one that has no answer was sent just now, or was lost.
const UNANSWERED: u8 = 3;

/// Whether the host at the other end does not answer what the kernel sends again and again.
fn is_host_gone(info: &libc::tcp_info) -> bool {
    let unanswered = info.tcpi_retransmits.max(info.tcpi_probes);
    unanswered >= UNANSWERED && info.tcpi_last_ack_recv >= SILENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_gone_only_if_it_answers_nothing() {
        let info = |retransmits, probes, silence| {
            // SAFETY: all zeros is a valid value.
            let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
            (info.tcpi_retransmits, info.tcpi_probes) = (retransmits, probes);
            info.tcpi_last_ack_recv = silence;
            info
        };
        assert!(is_host_gone(&info(3, 0, SILENCE)) && is_host_gone(&info(0, 3, SILENCE)));
        // Idle; a process that is stopped, whose kernel is asked at long intervals; a lost packet.
        for (retransmits, probes, silence) in
            [(0, 0, u32::MAX), (0, 1, u32::MAX), (2, 0, SILENCE), (9, 9, SILENCE - 1)]
        {
            assert!(!is_host_gone(&info(retransmits, probes, silence)));
        }
    }

    /// With `TCP_USER_TIMEOUT` the kernel would end the connection to a stopped process that has no
    /// room for more.
    #[test]
    fn the_kernel_does_not_limit_how_long_a_peer_is_stopped() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        enable_keep_alive(&stream);
        let (mut limit, mut len) = (-1, size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the descriptor is open, and the value is writable.
        let status = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_USER_TIMEOUT,
                (&raw mut limit).cast(),
                &raw mut len,
            )
        };
        assert_eq!((status, limit), (0, 0));
    }
}
