//! The accepting side of the handshake: listening sockets, and the handshakes of the connections
//! that arrive. Only a connection whose other end proves that it knows the secret is passed on.
//!
//! A stranger costs little: one of a bounded number of entries, for a bounded time, and at most 88
//! bytes read.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::handshake::{
    self, CHALLENGE_BYTES, ConnectionKind, HELLO_BYTES, Hello, PROOF_BYTES, WELCOME,
};
use super::poll::poll_fd;
use super::secret::{self, Secret};

/// Most handshakes in progress at once. One more drops the oldest; a rank that was dropped connects
/// again.
const MOST_PENDING: usize = 1024;
/// How long one handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long no connection is accepted after the process had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listening sockets and the handshakes in progress.
pub(super) struct HandshakeAcceptor {
    listeners: Vec<TcpListener>,
    secret: Secret,
    /// What the connections must be for.
    kind: ConnectionKind,
    /// The rank to which the dialers must want to connect; 0 for the root.
    rank: u32,
    pending: VecDeque<PendingHandshake>,
    paused_until: Option<Instant>,
}

/// A handshake in progress.
struct PendingHandshake {
    stream: TcpStream,
    peer: SocketAddr,
    deadline: Instant,
    /// Bytes that were read of the message that is being read.
    received: usize,
    hello: [u8; HELLO_BYTES],
    /// Sent after the hello was read completely. While it is set, the proof is being read.
    challenge: Option<[u8; CHALLENGE_BYTES]>,
    proof: [u8; PROOF_BYTES],
}

/// The state of a handshake.
enum HandshakeProgress {
    Waiting,
    Passed(Hello),
    Refused(&'static str),
}

impl HandshakeAcceptor {
    /// An acceptor for connections of this kind to `rank`.
    pub(super) fn new(
        listeners: Vec<TcpListener>,
        secret: Secret,
        kind: ConnectionKind,
        rank: u32,
    ) -> Self {
        Self { listeners, secret, kind, rank, pending: VecDeque::new(), paused_until: None }
    }

    /// Appends the entries to poll. Pass the same entries to [`advance`](Self::advance) afterwards.
    pub(super) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        let listen = if self.paused_until.is_some() { 0 } else { libc::POLLIN };
        fds.extend(self.listeners.iter().map(|it| poll_fd(it.as_raw_fd(), listen)));
        fds.extend(
            self.pending
                .iter()
                .map(|handshake| poll_fd(handshake.stream.as_raw_fd(), libc::POLLIN)),
        );
    }

    /// When [`advance`](Self::advance) must be called at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        let oldest = self.pending.front().map(|pending| pending.deadline);
        oldest.into_iter().chain(self.paused_until).min()
    }

    /// Closes the listeners and the connections whose handshake is in progress.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
        self.pending.clear();
    }

    /// Continues all handshakes and accepts new connections. Returns the connections whose
    /// handshake succeeded, and how many of `fds` belong to the acceptor.
    pub(super) fn advance(&mut self, fds: &[libc::pollfd]) -> (Vec<(Hello, TcpStream)>, usize) {
        let now = Instant::now();
        let polled = self.listeners.len() + self.pending.len();
        let (listeners, pending) = fds[..polled].split_at(self.listeners.len());

        let mut passed = Vec::new();
        for (mut handshake, fd) in std::mem::take(&mut self.pending).into_iter().zip(pending) {
            let mut progress = HandshakeProgress::Waiting;
            if fd.revents != 0 {
                progress = handshake.advance(&self.secret, self.kind, self.rank);
            }
            match progress {
                HandshakeProgress::Waiting if handshake.deadline <= now => {
                    handshake.refuse("it was too slow")
                }
                HandshakeProgress::Waiting => self.pending.push_back(handshake),
                HandshakeProgress::Passed(hello) => passed.push((hello, handshake.stream)),
                HandshakeProgress::Refused(why) => handshake.refuse(why),
            }
        }
        let resumed = self.paused_until.is_some_and(|until| until <= now);
        if resumed {
            self.paused_until = None;
        }
        for (at, fd) in listeners.iter().enumerate() {
            if fd.revents != 0 || resumed {
                self.accept(at, now, &mut passed);
            }
        }
        (passed, polled)
    }

    /// Accepts the connections that wait at one listener.
    fn accept(&mut self, at: usize, now: Instant, passed: &mut Vec<(Hello, TcpStream)>) {
        // Bounded, so that many new connections do not delay the handshakes in progress.
        for _ in 0..64 {
            let (stream, peer) = match self.listeners[at].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
                {
                    match self.pending.pop_front() {
                        Some(oldest) => oldest.refuse("this process has no file descriptor left"),
                        None => {
                            log::warn!(
                                "no file descriptor is left to accept ranks; raise `ulimit -n`"
                            );
                            self.paused_until = Some(now + ACCEPT_PAUSE);
                            return;
                        }
                    }
                    continue;
                }
                // The connection broke before it was accepted, or a signal arrived.
                Err(_) => continue,
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            self.begin(stream, peer, passed);
        }
    }

    /// Begins the handshake of a new connection.
    pub(super) fn begin(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        passed: &mut Vec<(Hello, TcpStream)>,
    ) {
        if self.pending.len() == MOST_PENDING
            && let Some(oldest) = self.pending.pop_front()
        {
            oldest.refuse("too many connect at once");
        }
        let mut handshake = PendingHandshake {
            stream,
            peer,
            deadline: Instant::now() + HANDSHAKE_TIMEOUT,
            received: 0,
            hello: [0; HELLO_BYTES],
            challenge: None,
            proof: [0; PROOF_BYTES],
        };
        match handshake.advance(&self.secret, self.kind, self.rank) {
            HandshakeProgress::Waiting => self.pending.push_back(handshake),
            HandshakeProgress::Passed(hello) => passed.push((hello, handshake.stream)),
            HandshakeProgress::Refused(why) => handshake.refuse(why),
        }
    }

    /// The number of handshakes in progress.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl PendingHandshake {
    fn advance(&mut self, secret: &Secret, kind: ConnectionKind, rank: u32) -> HandshakeProgress {
        loop {
            let part: &mut [u8] =
                if self.challenge.is_none() { &mut self.hello } else { &mut self.proof };
            if self.received < part.len() {
                match self.stream.read(&mut part[self.received..]) {
                    Ok(0) => return HandshakeProgress::Refused("it closed the connection"),
                    Ok(count) => self.received += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return HandshakeProgress::Waiting;
                    }
                    Err(_) => return HandshakeProgress::Refused("the connection broke"),
                }
                continue;
            }
            let Some(hello) = Hello::decode(&self.hello) else {
                return HandshakeProgress::Refused("it does not speak the protocol");
            };
            if hello.kind != kind || hello.to != rank {
                return HandshakeProgress::Refused("it wants another rank or service");
            }
            // Both answers are smaller than any socket buffer, so a short write means a broken
            // connection.
            match &self.challenge {
                None => {
                    let Ok(nonce) = secret::random() else {
                        return HandshakeProgress::Refused("the kernel gives no random numbers");
                    };
                    let challenge = handshake::challenge(secret, &self.hello, &nonce);
                    if !matches!(self.stream.write(&challenge), Ok(CHALLENGE_BYTES)) {
                        return HandshakeProgress::Refused("the connection broke");
                    }
                    self.challenge = Some(challenge);
                    self.received = 0;
                }
                Some(challenge) => {
                    if !handshake::is_proof_valid(secret, &self.hello, challenge, &self.proof) {
                        return HandshakeProgress::Refused("it does not know the secret");
                    }
                    if !matches!(self.stream.write(&[WELCOME]), Ok(1)) {
                        return HandshakeProgress::Refused("the connection broke");
                    }
                    return HandshakeProgress::Passed(hello);
                }
            }
        }
    }

    fn refuse(self, why: &str) {
        log::info!("dropped a connection from {}: {why}", self.peer);
    }
}
