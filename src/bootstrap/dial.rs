//! The connecting side of the handshake: tries the addresses of a listener again and again until
//! one answers and both ends have proved that they know the secret.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use maypole_transport::net;
use maypole_transport::noise::{
    self, ANSWER_BYTES, Binding, CONFIRMATION_BYTES, DATA_BYTES, FIRST_BYTES, Key, REFUSAL_BYTES,
    Refusal, TAG_BYTES,
};

use super::error::BootstrapError;
use super::frame_stream::SecureStream;
use super::poll::poll_fd;

/// How long the network may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the listener may take to answer; longer than its own timeout, so that the ends do not
/// give up together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause after all addresses were tried. It doubles each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the system must refuse all addresses until that is final: an interface may just come
/// up.
const REFUSED_TIME: Duration = Duration::from_secs(2);

/// A connection that is being made. No function waits.
pub(crate) struct Dialer {
    secret: Key,
    binding: Binding,
    addresses: Vec<SocketAddr>,
    /// The index of the address that is being tried.
    at: usize,
    state: DialState,
    /// When the state ends: a pause is over, or an attempt has failed.
    deadline: Instant,
    pause: Duration,
    /// Why the last attempt failed.
    last_error: String,
    /// In this round the system refused all addresses so far.
    refused_round: bool,
    /// Since when the system has refused all addresses.
    refused_since: Option<Instant>,
    /// An address has taken a connection.
    reached: bool,
    /// In this round, an address that speaks the protocol but does not know the secret.
    wrong_id: Option<SocketAddr>,
    /// The number of rounds with such an address. A single refusal may be the answer to a message
    /// that was changed on its way.
    wrong_rounds: u32,
}

/// How far the attempt with the current address has come.
enum DialState {
    Pausing,
    Connecting(TcpStream),
    Answering(Box<AwaitedAnswer>),
    Confirming(Box<AwaitedWelcome>),
}

/// An answer of which `got` bytes have come.
struct AwaitedAnswer {
    stream: TcpStream,
    handshake: noise::Dialer,
    bytes: [u8; ANSWER_BYTES],
    got: usize,
}

/// The first record of a listener, which accepts the confirmation.
struct AwaitedWelcome {
    secure: SecureStream,
    bytes: [u8; TAG_BYTES],
    got: usize,
}

/// The result of [`Dialer::advance`].
pub(crate) enum DialOutcome {
    NotYet,
    Connected(SecureStream),
    /// All addresses were tried, none knows the secret, and this one speaks the protocol. The
    /// caller may go on.
    WrongId(SocketAddr),
}

impl Dialer {
    /// A dialer with this binding.
    pub(crate) fn new(secret: Key, binding: Binding, addresses: Vec<SocketAddr>) -> Self {
        Self {
            secret,
            binding,
            addresses,
            at: 0,
            state: DialState::Pausing,
            deadline: Instant::now(),
            pause: FIRST_PAUSE,
            last_error: String::from("no attempt has ended"),
            refused_round: true,
            refused_since: None,
            reached: false,
            wrong_id: None,
            wrong_rounds: 0,
        }
    }

    /// The entry with which to poll the attempt.
    pub(crate) fn poll_fd(&self) -> libc::pollfd {
        match &self.state {
            DialState::Pausing => poll_fd(-1, 0),
            DialState::Connecting(stream) => poll_fd(stream.as_raw_fd(), libc::POLLOUT),
            DialState::Answering(it) => poll_fd(it.stream.as_raw_fd(), libc::POLLIN),
            DialState::Confirming(it) => poll_fd(it.secure.stream.as_raw_fd(), libc::POLLIN),
        }
    }

    /// When [`advance`](Self::advance) must be called at the latest.
    pub(crate) fn wake(&self) -> Instant {
        self.deadline
    }

    /// Why the last attempt failed.
    pub(crate) fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Whether an address has taken a connection, also if that ended before it was proven.
    pub(super) fn has_reached(&self) -> bool {
        self.reached
    }

    /// Whether the system has refused all addresses for some time.
    pub(super) fn is_refused(&self) -> bool {
        self.refused_since.is_some_and(|since| since.elapsed() >= REFUSED_TIME)
    }

    /// Gives up. Returns the connection if the other end may regard it as made.
    pub(super) fn abandon(self) -> Option<SecureStream> {
        match self.state {
            DialState::Confirming(it) => Some(it.secure),
            _ => None,
        }
    }

    /// Continues as far as possible without waiting.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if the process has no descriptor left, or the kernel gives no
    /// random numbers.
    pub(crate) fn advance(&mut self) -> Result<DialOutcome, BootstrapError> {
        loop {
            let now = Instant::now();
            let state = std::mem::replace(&mut self.state, DialState::Pausing);
            let step = match state {
                DialState::Pausing if now < self.deadline => return Ok(DialOutcome::NotYet),
                DialState::Pausing => self.start(now)?,
                _ if now >= self.deadline => DialStep::Fail(String::from("no answer")),
                DialState::Connecting(stream) => self.connected(stream, now)?,
                DialState::Answering(answer) => self.read(answer),
                DialState::Confirming(mut welcome) => match welcome.read() {
                    Ok(true) => return Ok(DialOutcome::Connected(welcome.secure)),
                    Ok(false) => DialStep::Wait(DialState::Confirming(welcome)),
                    Err(error) => DialStep::Fail(error.to_string()),
                },
            };
            let refused = matches!(step, DialStep::Refused(_));
            match step {
                DialStep::Wait(state) => {
                    self.state = state;
                    return Ok(DialOutcome::NotYet);
                }
                DialStep::Continue(state) => self.state = state,
                DialStep::Fail(why) | DialStep::Refused(why) => {
                    self.refused_round &= refused;
                    self.last_error = match self.addresses.get(self.at) {
                        Some(address) => format!("{address}: {why}"),
                        None => why,
                    };
                    self.at += 1;
                    self.deadline = now;
                    if self.at >= self.addresses.len() {
                        self.at = 0;
                        self.deadline = now + self.pause;
                        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                        let all_refused = std::mem::replace(&mut self.refused_round, true);
                        self.refused_since = all_refused.then(|| self.refused_since.unwrap_or(now));
                        if let Some(address) = self.wrong_id.take() {
                            self.wrong_rounds += 1;
                            if self.wrong_rounds > 1 {
                                return Ok(DialOutcome::WrongId(address));
                            }
                        }
                    }
                }
            }
        }
    }

    fn start(&mut self, now: Instant) -> Result<DialStep, BootstrapError> {
        let Some(&address) = self.addresses.get(self.at) else {
            let why = "this host reaches none of its networks";
            return Ok(DialStep::Refused(String::from(why)));
        };
        self.deadline = now + CONNECT_TIMEOUT;
        Ok(match net::connect(address).map(TcpStream::from) {
            Ok(stream) => DialStep::Wait(DialState::Connecting(stream)),
            // This is not an error of the network, and the next attempt would fail too.
            Err(error)
                if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
            {
                return Err(BootstrapError::system("socket", &error));
            }
            Err(error) => failed(&error),
        })
    }

    fn connected(
        &mut self,
        mut stream: TcpStream,
        now: Instant,
    ) -> Result<DialStep, BootstrapError> {
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Ok(failed(&error)),
        }
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
            return Ok(DialStep::Wait(DialState::Connecting(stream)));
        };
        // The kernel may give the connecting socket the very port to which it connects, if no
        // process listens there.
        if peer == local {
            return Ok(DialStep::Refused(String::from("no process listens there")));
        }
        self.reached = true;
        let _ = stream.set_nodelay(true);
        let (handshake, first) = noise::Dialer::new(&self.secret, &self.binding)
            .map_err(|error| BootstrapError::system("getrandom", &error))?;
        Ok(match stream.write(&first) {
            Ok(FIRST_BYTES) => {
                self.deadline = now + ANSWER_TIMEOUT;
                let (bytes, got) = ([0; ANSWER_BYTES], 0);
                let answer = AwaitedAnswer { stream, handshake, bytes, got };
                DialStep::Continue(DialState::Answering(Box::new(answer)))
            }
            Ok(_) => DialStep::Fail(String::from("the connection broke")),
            Err(error) => DialStep::Fail(error.to_string()),
        })
    }

    fn read(&mut self, mut answer: Box<AwaitedAnswer>) -> DialStep {
        match answer.stream.read(&mut answer.bytes[answer.got..]) {
            Ok(0) => return DialStep::Fail(String::from("it closed the connection")),
            Ok(count) => answer.got += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return DialStep::Wait(DialState::Answering(answer));
            }
            Err(error) => return DialStep::Fail(error.to_string()),
        }
        let head = answer.bytes.first_chunk().filter(|_| answer.got >= REFUSAL_BYTES);
        if let Some(refusal) = head.and_then(noise::refusal_in) {
            if refusal == Refusal::UnknownKey {
                self.wrong_id = self.addresses.get(self.at).copied();
            }
            return DialStep::Fail(refusal.to_string());
        }
        if answer.got < ANSWER_BYTES {
            return DialStep::Continue(DialState::Answering(answer));
        }
        let AwaitedAnswer { mut stream, handshake, bytes, .. } = *answer;
        let (session, confirmation) = match handshake.finish(&bytes, &[0; DATA_BYTES]) {
            Ok((session, _, confirmation)) => (session, confirmation),
            Err(refusal) => return DialStep::Fail(refusal.to_string()),
        };
        match stream.write(&confirmation) {
            Ok(CONFIRMATION_BYTES) => {
                let secure = SecureStream { stream, session };
                let welcome = AwaitedWelcome { secure, bytes: [0; TAG_BYTES], got: 0 };
                DialStep::Continue(DialState::Confirming(Box::new(welcome)))
            }
            Ok(_) => DialStep::Fail(String::from("the connection broke")),
            Err(error) => DialStep::Fail(error.to_string()),
        }
    }
}

/// What to do next.
enum DialStep {
    Wait(DialState),
    Continue(DialState),
    Fail(String),
    /// The system knows that nothing can be reached at the address.
    Refused(String),
}

/// A failure of a system call.
fn failed(error: &Error) -> DialStep {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(
            libc::ECONNREFUSED
            | libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT,
        ) => DialStep::Refused(text),
        _ => DialStep::Fail(text),
    }
}

impl AwaitedWelcome {
    /// Whether the listener has accepted the confirmation.
    fn read(&mut self) -> Result<bool, Error> {
        while self.got < TAG_BYTES {
            match self.secure.stream.read(&mut self.bytes[self.got..]) {
                Ok(0) => {
                    return Err(Error::new(ErrorKind::UnexpectedEof, "it closed the connection"));
                }
                Ok(count) => self.got += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let opened = self.secure.session.open(&[], &self.bytes, &mut Vec::new());
        opened.map(|()| true).map_err(|forged| Error::new(ErrorKind::InvalidData, forged))
    }
}
