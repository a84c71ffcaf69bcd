//! Dialing a listener that has several addresses, over and over, until it answers and both ends are convinced.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::error::BootstrapError;
use super::hello::{self, Answer, CHALLENGE_BYTES, HELLO_BYTES, Hello, PROOF_BYTES, WELCOME};
use super::secret::{self, Secret};
use super::stream::poll_fd;

/// For the network to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// For the listener to answer; longer than its own patience, so that both do not give up at once.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);
/// Between rounds through all addresses; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One connection in the making. Nothing here blocks.
pub(super) struct Dial {
    secret: Secret,
    hello: Hello,
    addresses: Vec<SocketAddr>,
    /// The address being tried.
    at: usize,
    state: State,
    /// When the state ends: a pause, or an attempt that failed.
    until: Instant,
    pause: Duration,
    /// Why the last attempt failed.
    last: String,
    /// Who answered in our protocol without knowing the secret, in this round.
    wrong: Option<SocketAddr>,
}

enum State {
    Pausing,
    Connecting(TcpStream),
    Answering { stream: TcpStream, hello: [u8; HELLO_BYTES], answer: Vec<u8> },
    Proving(TcpStream),
}

/// What dialing has come to.
pub(super) enum Dialed {
    NotYet,
    Connected(TcpStream),
    /// All addresses were tried; none knows the secret and this one should. It may be tried again.
    WrongId(SocketAddr),
}

impl Dial {
    /// `hello` without its nonce: each attempt makes its own.
    pub(super) fn new(secret: Secret, hello: Hello, addresses: Vec<SocketAddr>) -> Self {
        Self {
            secret,
            hello,
            addresses,
            at: 0,
            state: State::Pausing,
            until: Instant::now(),
            pause: FIRST_PAUSE,
            last: String::from("no address"),
            wrong: None,
        }
    }

    pub(super) fn poll_fd(&self) -> libc::pollfd {
        match &self.state {
            State::Pausing => poll_fd(-1, 0),
            State::Connecting(stream) => poll_fd(stream.as_raw_fd(), libc::POLLOUT),
            State::Answering { stream, .. } | State::Proving(stream) => {
                poll_fd(stream.as_raw_fd(), libc::POLLIN)
            }
        }
    }

    /// When to come back at the latest.
    pub(super) fn wake(&self) -> Instant {
        self.until
    }

    /// Why the last attempt failed.
    pub(super) fn last(&self) -> &str {
        &self.last
    }

    /// Gives up. The connection that the other end may regard as made, if it has come so far.
    pub(super) fn abandon(self) -> Option<TcpStream> {
        match self.state {
            State::Proving(stream) => Some(stream),
            _ => None,
        }
    }

    /// Goes on as far as possible without waiting.
    pub(super) fn advance(&mut self) -> Result<Dialed, BootstrapError> {
        loop {
            let now = Instant::now();
            let state = std::mem::replace(&mut self.state, State::Pausing);
            let step = match state {
                State::Pausing if now < self.until => return Ok(Dialed::NotYet),
                State::Pausing => self.start(now)?,
                _ if now >= self.until => Step::Fail(String::from("no answer")),
                State::Connecting(stream) => self.connected(stream, now)?,
                State::Answering { stream, hello, answer } => self.read(stream, hello, answer),
                State::Proving(stream) => match welcomed(&stream) {
                    Ok(true) => return Ok(Dialed::Connected(stream)),
                    Ok(false) => Step::Wait(State::Proving(stream)),
                    Err(error) => Step::Fail(error.to_string()),
                },
            };
            match step {
                Step::Wait(state) => {
                    self.state = state;
                    return Ok(Dialed::NotYet);
                }
                Step::Go(state) => self.state = state,
                Step::Fail(why) => {
                    self.last = match self.addresses.get(self.at) {
                        Some(address) => format!("{address}: {why}"),
                        None => why,
                    };
                    self.at += 1;
                    self.until = now;
                    if self.at >= self.addresses.len() {
                        self.at = 0;
                        self.until = now + self.pause;
                        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                        if let Some(address) = self.wrong.take() {
                            return Ok(Dialed::WrongId(address));
                        }
                    }
                }
            }
        }
    }

    fn start(&mut self, now: Instant) -> Result<Step, BootstrapError> {
        let Some(&address) = self.addresses.get(self.at) else {
            return Ok(Step::Fail(String::from("no address")));
        };
        self.until = now + CONNECT_PATIENCE;
        Ok(match connect(address) {
            Ok(stream) => Step::Wait(State::Connecting(stream)),
            // Not the network's doing, and no better at the next attempt.
            Err(error)
                if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
            {
                return Err(BootstrapError::system("socket", &error));
            }
            Err(error) => Step::Fail(error.to_string()),
        })
    }

    fn connected(&mut self, mut stream: TcpStream, now: Instant) -> Result<Step, BootstrapError> {
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Ok(Step::Fail(error.to_string())),
        }
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
            return Ok(Step::Wait(State::Connecting(stream)));
        };
        // A port of this host to which nobody listens may be given to the dialing socket itself.
        if peer == local {
            return Ok(Step::Fail(String::from("nobody listens")));
        }
        let _ = stream.set_nodelay(true);
        self.hello.nonce = secret::random()?;
        let hello = self.hello.encode();
        Ok(match stream.write(&hello) {
            Ok(HELLO_BYTES) => {
                self.until = now + ANSWER_PATIENCE;
                Step::Go(State::Answering { stream, hello, answer: Vec::new() })
            }
            Ok(_) => Step::Fail(String::from("the connection broke")),
            Err(error) => Step::Fail(error.to_string()),
        })
    }

    fn read(
        &mut self,
        mut stream: TcpStream,
        hello: [u8; HELLO_BYTES],
        mut answer: Vec<u8>,
    ) -> Step {
        let mut buffer = [0; CHALLENGE_BYTES];
        let room = &mut buffer[answer.len()..];
        match stream.read(room) {
            Ok(0) => return Step::Fail(String::from("it closed the connection")),
            Ok(count) => answer.extend(&room[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Step::Wait(State::Answering { stream, hello, answer });
            }
            Err(error) => return Step::Fail(error.to_string()),
        }
        let Some(challenge) = answer.first_chunk::<CHALLENGE_BYTES>() else {
            return Step::Go(State::Answering { stream, hello, answer });
        };
        match hello::answer(&self.secret, &hello, challenge) {
            Answer::Proof(proof) => match stream.write(&proof) {
                Ok(PROOF_BYTES) => Step::Go(State::Proving(stream)),
                Ok(_) => Step::Fail(String::from("the connection broke")),
                Err(error) => Step::Fail(error.to_string()),
            },
            Answer::WrongId => {
                self.wrong = self.addresses.get(self.at).copied();
                Step::Fail(String::from("it serves another unique id"))
            }
            Answer::NotOurs => Step::Fail(String::from("it is not one of ours")),
        }
    }
}

enum Step {
    Wait(State),
    Go(State),
    Fail(String),
}

fn welcomed(mut stream: &TcpStream) -> Result<bool, Error> {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(1) if byte[0] == WELCOME => Ok(true),
        Ok(0) => Err(Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
        Ok(_) => Err(Error::new(ErrorKind::InvalidData, "it is not one of ours")),
        Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Begins to connect. (The standard library only connects by waiting.)
fn connect(address: SocketAddr) -> Result<TcpStream, Error> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket has no preconditions.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let status = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: `raw` is a socket address of the length given.
            unsafe { libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) }
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: `raw` is a socket address of the length given.
            unsafe { libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) }
        }
    };
    match (status, Error::last_os_error()) {
        (0, _) => Ok(stream),
        // An interrupted connect goes on in the background like one in progress.
        (_, error)
            if [Some(libc::EINPROGRESS), Some(libc::EINTR)].contains(&error.raw_os_error()) =>
        {
            Ok(stream)
        }
        (_, error) => Err(error),
    }
}
