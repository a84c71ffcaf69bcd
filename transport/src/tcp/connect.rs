//! The handshake of a new stream, from either end, as a state machine that never blocks.
//!
//! It is that of [`hello`](crate::handshake); what the medium adds is the shape of the links, sent once the other end has proven
//! itself. Every message has a fixed size, so a stranger is owed no memory and no parsing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::frame::{SHAPE, shape, streams_of};
use super::socket::{self, piece};
use crate::Rank;
use crate::error::LinkError;
use crate::handshake::{Credentials, Dialed, HELLO, Medium, NONCE, Nonce, PROOF, Proof};
use crate::inbox::InboxLayout;

/// How long the other end may take for the whole handshake.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A stream to be made by dialing.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) peer: Rank,
    pub(crate) stream: u32,
    /// Streams of the pair.
    pub(crate) streams: u32,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Attempts so far.
    pub(crate) attempts: usize,
    pub(crate) not_before: Instant,
    pub(crate) give_up: Instant,
    /// The pair was never complete: somebody waits for it and is told of a failure.
    pub(crate) first: bool,
    /// Every failure so far was that nobody listens there.
    pub(crate) refused: bool,
    /// It is only to be seen whether somebody listens there: the peer is the one to dial.
    pub(crate) probe: bool,
}

/// A connection that is not yet a stream.
pub(crate) struct Handshake {
    pub(crate) socket: OwnedFd,
    pub(crate) since: Instant,
    pub(crate) role: Role,
    got: usize,
    buffer: [u8; PROOF + SHAPE + HELLO],
}

pub(crate) enum Role {
    /// The other end owes a hello.
    Accepted(Nonce),
    /// It has proven itself and owes its shape.
    Proven(Rank, u32),
    /// Its address has not answered.
    Dialing(Target),
    /// It owes a challenge.
    Reached(Target),
    /// It owes its proof and its shape.
    Asked(Target, Dialed),
}

/// What became of a handshake.
pub(crate) enum Step {
    /// More must come.
    Wait,
    /// It is a stream, of this peer, number and count.
    Done { peer: Rank, stream: u32, streams: u32 },
    /// It is over. For a proven or dialed peer, why; a probe that is answered has no reason.
    Failed(Option<LinkError>),
}

impl Handshake {
    /// Of a connection that was accepted: challenges the other end.
    pub(crate) fn accept(socket: OwnedFd) -> Result<Self, LinkError> {
        let challenge = Credentials::nonce()?;
        // A fresh socket has room for it. If it is gone already, reading will say so.
        let _ = write(&socket, &challenge);
        Ok(Self::new(socket, Role::Accepted(challenge)))
    }

    /// Begins to dial the target's next address.
    pub(crate) fn dial(target: Target) -> Result<Self, (Target, io::Error)> {
        let to = target.addresses[target.attempts % target.addresses.len()];
        match socket::connect(to) {
            Ok(socket) => Ok(Self::new(socket, Role::Dialing(target))),
            Err(error) => Err((target, error)),
        }
    }

    fn new(socket: OwnedFd, role: Role) -> Self {
        let buffer = [0; PROOF + SHAPE + HELLO];
        Self { socket, since: Instant::now(), role, got: 0, buffer }
    }

    pub(crate) fn is_stranger(&self) -> bool {
        matches!(self.role, Role::Accepted(_))
    }

    /// Does all that can be done without waiting.
    pub(crate) fn advance(&mut self, party: &Credentials, layout: &InboxLayout) -> Step {
        loop {
            if let Role::Dialing(target) = &self.role {
                if let Err(error) = socket::outcome(self.socket.as_fd()) {
                    return Step::Failed(Some(LinkError::system("connect", &error)));
                }
                if target.probe {
                    return Step::Failed(None);
                }
                self.role = Role::Reached(target.clone());
            }
            let want = match self.role {
                Role::Accepted(_) => HELLO,
                Role::Proven(..) => SHAPE,
                Role::Dialing(_) | Role::Reached(_) => NONCE,
                Role::Asked(..) => PROOF + SHAPE,
            };
            while self.got < want {
                let mut place = [piece(self.buffer[self.got..want].as_mut_ptr(), want - self.got)];
                // SAFETY: the rest of the buffer, which is ours.
                match unsafe { socket::receive(self.socket.as_fd(), &mut place) } {
                    Ok(0) => return self.ended(),
                    Ok(got) => self.got += got,
                    // A socket that is still connecting says so too.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                    Err(_) => return self.ended(),
                }
            }
            self.got = 0;
            match self.take(party, layout) {
                Ok(None) => {}
                Ok(Some(done)) => return done,
                Err(step) => return step,
            }
        }
    }

    /// Handles a message that is there whole.
    fn take(&mut self, party: &Credentials, layout: &InboxLayout) -> Result<Option<Step>, Step> {
        let other_shape = |peer| {
            let why = "its links have another shape: were the two configured differently?";
            Step::Failed(Some(LinkError::Corrupt { peer, why }))
        };
        let buffer = &self.buffer;
        let done = match &self.role {
            Role::Accepted(challenge) => {
                let hello: &[u8; HELLO] = buffer.first_chunk().ok_or(Step::Failed(None))?;
                let Some((peer, stream, proof)) = party.answer(Medium::Tcp, *challenge, hello)
                else {
                    log::warn!(
                        "rank {}: refused a connection that does not know the communicator's secret",
                        party.rank
                    );
                    return Err(Step::Failed(None));
                };
                // Our shape has no count: the dialer's has.
                let answer = [&proof[..], &shape(layout, 0)].concat();
                self.say(&answer)?;
                self.role = Role::Proven(peer, stream);
                None
            }
            &Role::Proven(peer, stream) => {
                let theirs: &[u8; SHAPE] = buffer.first_chunk().ok_or(Step::Failed(None))?;
                let streams = streams_of(theirs, layout).ok_or_else(|| other_shape(peer))?;
                Some(Step::Done { peer, stream, streams })
            }
            Role::Reached(target) => {
                let challenge: &Nonce = buffer.first_chunk().ok_or(Step::Failed(None))?;
                let stream = (Medium::Tcp, target.stream);
                let (dialed, hello) = party
                    .dial(stream, target.peer, *challenge)
                    .map_err(|error| Step::Failed(Some(error)))?;
                self.say(&hello)?;
                self.role = Role::Asked(target.clone(), dialed);
                None
            }
            Role::Asked(target, dialed) => {
                let &Target { peer, stream, streams, .. } = target;
                let proof: &Proof = buffer.first_chunk().ok_or(Step::Failed(None))?;
                if !party.accepts(dialed, proof) {
                    let why = "it cannot prove that it belongs to the communicator";
                    return Err(Step::Failed(Some(LinkError::Refused { peer, why })));
                }
                let theirs: &[u8; SHAPE] =
                    buffer[PROOF..].first_chunk().ok_or(Step::Failed(None))?;
                let same = streams_of(theirs, layout).is_some();
                // Also if it differs, so that the other end can say so.
                self.say(&shape(layout, streams))?;
                if !same {
                    return Err(other_shape(peer));
                }
                Some(Step::Done { peer, stream, streams })
            }
            Role::Dialing(_) => None,
        };
        Ok(done)
    }

    /// Messages of a handshake are small: a fresh socket has room for all of them.
    fn say(&self, bytes: &[u8]) -> Result<(), Step> {
        match write(&self.socket, bytes) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            _ => Err(self.ended()),
        }
    }

    /// The other end closed the connection.
    fn ended(&self) -> Step {
        Step::Failed(match &self.role {
            Role::Accepted(_) => None,
            &Role::Proven(peer, _) => {
                let why = "it closed the connection before it was made";
                Some(LinkError::Refused { peer, why })
            }
            Role::Dialing(target) | Role::Reached(target) | Role::Asked(target, _) => {
                let why = "it does not accept this rank; the two hold different secrets or sizes";
                Some(LinkError::Refused { peer: target.peer, why })
            }
        })
    }
}

fn write(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut place = [piece(bytes.as_ptr().cast_mut(), bytes.len())];
    // SAFETY: the bytes are only read.
    unsafe { socket::send(socket.as_fd(), &mut place) }
}
