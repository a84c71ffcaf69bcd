//! The gate: listening sockets and the handshakes of those who come. Only who proves to know the secret gets through.
//!
//! A stranger costs little: one of a bounded number of places, a bounded time, and 88 bytes read at most.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::hello::{self, CHALLENGE_BYTES, HELLO_BYTES, Hello, PROOF_BYTES, Role, WELCOME};
use super::secret::{self, Secret};
use super::stream::poll_fd;

/// Handshakes in progress at once; one more drops the oldest. A dropped rank dials again.
const MOST_PENDING: usize = 1024;
/// How long one handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nobody is let in when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Gate {
    listeners: Vec<TcpListener>,
    secret: Secret,
    role: Role,
    /// Whom the dialer must want; 0 for the root.
    me: u32,
    pending: VecDeque<Pending>,
    paused_until: Option<Instant>,
}

struct Pending {
    stream: TcpStream,
    peer: SocketAddr,
    until: Instant,
    /// Bytes read of the part that is being read.
    got: usize,
    hello: [u8; HELLO_BYTES],
    /// Sent after the hello was read whole; then the proof is being read.
    challenge: Option<[u8; CHALLENGE_BYTES]>,
    proof: [u8; PROOF_BYTES],
}

/// What a handshake has come to.
enum Progress {
    Waiting,
    Passed(Hello),
    Refused(&'static str),
}

impl Gate {
    pub(super) fn new(listeners: Vec<TcpListener>, secret: Secret, role: Role, me: u32) -> Self {
        Self { listeners, secret, role, me, pending: VecDeque::new(), paused_until: None }
    }

    /// Appends what to poll; [`advance`](Self::advance) wants the same entries back.
    pub(super) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        let listen = if self.paused_until.is_some() { 0 } else { libc::POLLIN };
        fds.extend(self.listeners.iter().map(|it| poll_fd(it.as_raw_fd(), listen)));
        fds.extend(self.pending.iter().map(|it| poll_fd(it.stream.as_raw_fd(), libc::POLLIN)));
    }

    /// When to come back at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        let oldest = self.pending.front().map(|pending| pending.until);
        oldest.into_iter().chain(self.paused_until).min()
    }

    /// Lets nobody in any more.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
        self.pending.clear();
    }

    /// Goes on with all handshakes and returns those who passed, and how many of `fds` were the gate's.
    pub(super) fn advance(&mut self, fds: &[libc::pollfd]) -> (Vec<(Hello, TcpStream)>, usize) {
        let now = Instant::now();
        let polled = self.listeners.len() + self.pending.len();
        let (listeners, pending) = fds[..polled].split_at(self.listeners.len());

        let mut passed = Vec::new();
        for (mut it, fd) in std::mem::take(&mut self.pending).into_iter().zip(pending) {
            let mut progress = Progress::Waiting;
            if fd.revents != 0 {
                progress = it.advance(&self.secret, self.role, self.me);
            }
            match progress {
                Progress::Waiting if it.until <= now => it.refuse("it was too slow"),
                Progress::Waiting => self.pending.push_back(it),
                Progress::Passed(hello) => passed.push((hello, it.stream)),
                Progress::Refused(why) => it.refuse(why),
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

    /// Lets in who waits at one listener.
    fn accept(&mut self, at: usize, now: Instant, passed: &mut Vec<(Hello, TcpStream)>) {
        // Bounded, so that a flood does not keep those who are inside waiting.
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
                                "no file descriptor left to let ranks in; raise `ulimit -n`"
                            );
                            self.paused_until = Some(now + PAUSE);
                            return;
                        }
                    }
                    continue;
                }
                // The connection broke before it was accepted, or a signal came.
                Err(_) => continue,
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let _ = stream.set_nodelay(true);
            self.greet(stream, peer, passed);
        }
    }

    /// Begins the handshake with one who came.
    pub(super) fn greet(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        passed: &mut Vec<(Hello, TcpStream)>,
    ) {
        if self.pending.len() == MOST_PENDING
            && let Some(oldest) = self.pending.pop_front()
        {
            oldest.refuse("too many come at once");
        }
        let mut it = Pending {
            stream,
            peer,
            until: Instant::now() + PATIENCE,
            got: 0,
            hello: [0; HELLO_BYTES],
            challenge: None,
            proof: [0; PROOF_BYTES],
        };
        match it.advance(&self.secret, self.role, self.me) {
            Progress::Waiting => self.pending.push_back(it),
            Progress::Passed(hello) => passed.push((hello, it.stream)),
            Progress::Refused(why) => it.refuse(why),
        }
    }

    /// Handshakes in progress.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl Pending {
    fn advance(&mut self, secret: &Secret, role: Role, me: u32) -> Progress {
        loop {
            let part: &mut [u8] =
                if self.challenge.is_none() { &mut self.hello } else { &mut self.proof };
            if self.got < part.len() {
                match self.stream.read(&mut part[self.got..]) {
                    Ok(0) => return Progress::Refused("it closed the connection"),
                    Ok(count) => self.got += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Progress::Waiting;
                    }
                    Err(_) => return Progress::Refused("the connection broke"),
                }
                continue;
            }
            let Some(hello) = Hello::decode(&self.hello) else {
                return Progress::Refused("it does not speak our protocol");
            };
            if hello.role != role || hello.to != me {
                return Progress::Refused("it looks for someone else");
            }
            // Both answers are smaller than any socket buffer, so a short write is a broken peer.
            match &self.challenge {
                None => {
                    let Ok(nonce) = secret::random() else {
                        return Progress::Refused("this host gives no random numbers");
                    };
                    let challenge = hello::challenge(secret, &self.hello, &nonce);
                    if !matches!(self.stream.write(&challenge), Ok(CHALLENGE_BYTES)) {
                        return Progress::Refused("the connection broke");
                    }
                    self.challenge = Some(challenge);
                    self.got = 0;
                }
                Some(challenge) => {
                    if !hello::convinced(secret, &self.hello, challenge, &self.proof) {
                        return Progress::Refused("it does not know the secret");
                    }
                    if !matches!(self.stream.write(&[WELCOME]), Ok(1)) {
                        return Progress::Refused("the connection broke");
                    }
                    return Progress::Passed(hello);
                }
            }
        }
    }

    fn refuse(self, why: &str) {
        log::info!("dropped a connection from {}: {why}", self.peer);
    }
}
