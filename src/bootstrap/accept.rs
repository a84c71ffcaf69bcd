//! The accepting side of the handshake: listening sockets, and the handshakes of the connections
//! that arrive. Only a connection whose other end proves that it knows the secret is passed on.
//!
//! A stranger costs little: one of a bounded number of entries, for a bounded time, and at most 88
//! bytes read. If there are too many, those that have sent no valid first message go first.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use maypole_control::bootstrap::accepting::{AcceptCore, HandshakeId};
use maypole_control::time::Time;
use maypole_transport::noise::{
    ANSWER_BYTES, Binding, CONFIRMATION_BYTES, DATA_BYTES, FIRST_BYTES, Key, Listener, Purpose,
    Refusal, Session, TAG_BYTES,
};
use maypole_transport::strangers;

use super::frame_stream::SecureStream;
use super::poll::poll_fd;
use crate::clock;
use crate::process;

/// Most handshakes in progress at once, whatever the limit of descriptors. One more drops one of
/// them; a rank that was dropped connects again.
const MOST_PENDING: usize = 1024;
/// The handshakes in progress at one acceptor take this fraction (1 / n) of the descriptors that
/// the process may have, so that strangers leave room for everything else.
const DESCRIPTOR_SHARE: u64 = 8;
/// Handshakes that may be in progress at least.
const FEW_PENDING: usize = 16;

/// Listening sockets and the handshakes in progress. Which of them go on is decided by an
/// [`AcceptCore`].
pub(crate) struct HandshakeAcceptor {
    listeners: Vec<TcpListener>,
    secret: Key,
    /// What the connections must be for.
    purpose: Purpose,
    /// The rank to which the dialers must want to connect; 0 for the root.
    rank: u32,
    core: AcceptCore,
    pending: BTreeMap<HandshakeId, PendingHandshake>,
}

/// A handshake in progress.
struct PendingHandshake {
    stream: TcpStream,
    peer: SocketAddr,
    stage: HandshakeStage,
    /// Bytes that were read of the message that is being read.
    received: usize,
    message: [u8; FIRST_BYTES],
}

/// The message that is being read.
enum HandshakeStage {
    First,
    Confirmation(Box<Listener>),
}

/// The state of a handshake.
enum HandshakeProgress {
    Waiting,
    Passed(Binding, Session),
    Refused(&'static str),
}

impl HandshakeAcceptor {
    /// An acceptor for connections of this kind to `rank`.
    pub(crate) fn new(
        listeners: Vec<TcpListener>,
        secret: Key,
        purpose: Purpose,
        rank: u32,
    ) -> Self {
        let share = (process::descriptor_limit() / DESCRIPTOR_SHARE) as usize;
        Self {
            listeners,
            secret,
            purpose,
            rank,
            core: AcceptCore::new(share.clamp(FEW_PENDING, MOST_PENDING)),
            pending: BTreeMap::new(),
        }
    }

    /// Appends the entries to poll. Pass the same entries to [`advance`](Self::advance) afterwards.
    pub(crate) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        let listen = if self.core.is_paused() { 0 } else { libc::POLLIN };
        fds.extend(self.listeners.iter().map(|it| poll_fd(it.as_raw_fd(), listen)));
        fds.extend(
            self.pending
                .values()
                .map(|handshake| poll_fd(handshake.stream.as_raw_fd(), libc::POLLIN)),
        );
    }

    /// When [`advance`](Self::advance) must be called at the latest.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.core.wake().map(clock::instant_of)
    }

    /// Closes the listeners and the connections whose handshake is in progress.
    pub(crate) fn close(&mut self) {
        self.listeners.clear();
        std::mem::take(&mut self.pending).into_keys().for_each(|id| self.core.ended(id));
    }

    /// Continues all handshakes and accepts new connections. `now` is a time before `fds` were
    /// polled. Returns the connections whose handshake succeeded, and how many of `fds` belong to
    /// the acceptor.
    pub(crate) fn advance(
        &mut self,
        fds: &[libc::pollfd],
        now: Time,
    ) -> (Vec<(Binding, SecureStream)>, usize) {
        let polled = self.listeners.len() + self.pending.len();
        let (listeners, pending) = fds[..polled].split_at(self.listeners.len());

        let mut passed = Vec::new();
        let ready = self.pending.keys().zip(pending).filter(|(_, fd)| fd.revents != 0);
        let ready: Vec<HandshakeId> = ready.map(|(id, _)| *id).collect();
        ready.into_iter().for_each(|id| self.continue_one(id, &mut passed));
        let was_paused = self.core.is_paused();
        for id in self.core.tick(now) {
            self.refuse(id, "it was too slow");
        }
        let resumed = was_paused && !self.core.is_paused();
        for (at, fd) in listeners.iter().enumerate() {
            if fd.revents != 0 || resumed {
                self.accept(at, &mut passed);
            }
        }
        (passed, polled)
    }

    /// Accepts the connections that wait at one listener.
    fn accept(&mut self, at: usize, passed: &mut Vec<(Binding, SecureStream)>) {
        process::occupy_standard_streams();
        // Bounded, so that many new connections do not delay the handshakes in progress.
        for _ in 0..64 {
            let (stream, peer) = match self.listeners[at].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if [Some(libc::EMFILE), Some(libc::ENFILE)].contains(&error.raw_os_error()) =>
                {
                    match self.core.out_of_descriptors(clock::now()) {
                        Some(id) => self.refuse(id, "this process has no file descriptor left"),
                        None => {
                            log::warn!(
                                "no file descriptor is left to accept ranks; raise `ulimit -n`"
                            );
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
        passed: &mut Vec<(Binding, SecureStream)>,
    ) {
        let (id, dropped) = self.core.begin(clock::now());
        if let Some(dropped) = dropped {
            self.refuse(dropped, "too many connect at once");
        }
        let handshake = PendingHandshake {
            stream,
            peer,
            stage: HandshakeStage::First,
            received: 0,
            message: [0; FIRST_BYTES],
        };
        self.pending.insert(id, handshake);
        self.continue_one(id, passed);
    }

    /// Continues a handshake as far as possible.
    fn continue_one(&mut self, id: HandshakeId, passed: &mut Vec<(Binding, SecureStream)>) {
        let Some(handshake) = self.pending.get_mut(&id) else { return };
        match handshake.advance(&self.secret, self.purpose, self.rank) {
            HandshakeProgress::Waiting => {
                if matches!(handshake.stage, HandshakeStage::Confirmation(_)) {
                    self.core.proven(id);
                }
            }
            HandshakeProgress::Passed(binding, session) => {
                self.core.ended(id);
                let stream = self.pending.remove(&id).map(|handshake| handshake.stream);
                passed.extend(stream.map(|stream| (binding, SecureStream { stream, session })));
            }
            HandshakeProgress::Refused(why) => {
                self.core.ended(id);
                self.refuse(id, why);
            }
        }
    }

    /// Closes the connection of a handshake that has ended.
    fn refuse(&mut self, id: HandshakeId, why: &str) {
        if let Some(handshake) = self.pending.remove(&id) {
            handshake.refuse(why);
        }
    }

    /// The number of handshakes in progress.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl PendingHandshake {
    fn advance(&mut self, secret: &Key, purpose: Purpose, rank: u32) -> HandshakeProgress {
        loop {
            let len = match self.stage {
                HandshakeStage::First => FIRST_BYTES,
                HandshakeStage::Confirmation(_) => CONFIRMATION_BYTES,
            };
            while self.received < len {
                match self.stream.read(&mut self.message[self.received..len]) {
                    Ok(0) => return HandshakeProgress::Refused("it closed the connection"),
                    Ok(count) => self.received += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return HandshakeProgress::Waiting;
                    }
                    Err(_) => return HandshakeProgress::Refused("the connection broke"),
                }
            }
            self.received = 0;
            // The messages to the other end are smaller than any socket buffer, so a short write
            // means a broken connection.
            match std::mem::replace(&mut self.stage, HandshakeStage::First) {
                HandshakeStage::First => {
                    let accepts = |it: &Binding| it.purpose == purpose && it.to == rank;
                    match Listener::answer(secret, &self.message, &[0; DATA_BYTES], accepts) {
                        Ok((listener, answer)) => {
                            if !matches!(self.stream.write(&answer), Ok(ANSWER_BYTES)) {
                                return HandshakeProgress::Refused("the connection broke");
                            }
                            self.stage = HandshakeStage::Confirmation(Box::new(listener));
                        }
                        Err(refused) => {
                            if let Some(reply) = refused.reply {
                                let _ = self.stream.write(&reply);
                            }
                            return HandshakeProgress::Refused(match refused.refusal {
                                Refusal::NotMaypole => "it does not speak the protocol",
                                Refusal::OtherVersion => "it is of another version of Maypole",
                                Refusal::OtherBinding => "it wants another rank or service",
                                Refusal::NoRandomNumbers => "the kernel gives no random numbers",
                                Refusal::UnknownKey | Refusal::Forged => {
                                    "it does not know the secret"
                                }
                            });
                        }
                    }
                }
                HandshakeStage::Confirmation(listener) => {
                    let confirmation = self.message.first_chunk().expect("it is shorter");
                    let Ok((mut session, binding, _)) = listener.finish(confirmation) else {
                        return HandshakeProgress::Refused("it repeats an old message");
                    };
                    // The dialer waits for a first record, so that it tries again if it was dropped
                    // here.
                    let mut welcome = Vec::new();
                    session.seal(&[], &[], &mut welcome);
                    if !matches!(self.stream.write(&welcome), Ok(TAG_BYTES)) {
                        return HandshakeProgress::Refused("the connection broke");
                    }
                    return HandshakeProgress::Passed(binding, session);
                }
            }
        }
    }

    fn refuse(self, why: &str) {
        strangers::report(
            log::Level::Info,
            format_args!("dropped a connection from {}: {why}", self.peer),
        );
    }
}
