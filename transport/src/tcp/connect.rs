//! The handshake of a new stream, from either end, as a state machine that never blocks.
//!
//! It is the handshake of [`noise`](crate::noise). The data that TCP gives to it are the shapes of
//! the links. Every message has a fixed size, so a connection that has not proven itself costs no
//! further memory and no parsing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::frame::{SHAPE_BYTES, encode_shape, streams_in_shape};
use super::socket::{self, piece};
use crate::Rank;
use crate::credentials::{Credentials, refused};
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::net;
use crate::noise::{
    self, ANSWER_BYTES, CONFIRMATION_BYTES, DATA_BYTES, FIRST_BYTES, Purpose, Session,
};
use crate::strangers;

/// How long the whole handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest message, from the listener or from the dialer.
const BUFFER_BYTES: usize = if FIRST_BYTES > ANSWER_BYTES { FIRST_BYTES } else { ANSWER_BYTES };

/// A stream to dial.
#[derive(Clone, Debug)]
pub(crate) struct DialTarget {
    pub(crate) peer: Rank,
    /// Number of the stream.
    pub(crate) stream: u32,
    /// Number of streams of the pair.
    pub(crate) streams: u32,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Number of attempts so far.
    pub(crate) attempts: usize,
    pub(crate) not_before: Instant,
    pub(crate) give_up: Instant,
    /// The pair was never complete: a rank waits for it and must get the error if this fails.
    pub(crate) first: bool,
    /// In all attempts so far, nobody listened at the address.
    pub(crate) refused: bool,
    /// Only find out whether somebody listens at the address. The peer is the one that dials.
    pub(crate) probe: bool,
    /// The peer is the one that dials, and seems not to reach this rank.
    pub(crate) back: bool,
}

/// A connection that is not yet a stream.
pub(crate) struct TcpHandshake {
    pub(crate) socket: OwnedFd,
    pub(crate) since: Instant,
    pub(crate) stage: HandshakeStage,
    got: usize,
    buffer: [u8; BUFFER_BYTES],
}

/// What a handshake waits for.
pub(crate) enum HandshakeStage {
    /// The first message of a dialer.
    AwaitFirst,
    /// The confirmation of a dialer, which may have been there long ago.
    AwaitConfirmation(Box<noise::Listener>),
    /// The result of connecting.
    Connecting(DialTarget),
    /// The answer of the listener.
    AwaitAnswer(DialTarget, Box<noise::Dialer>),
    /// Nothing: the handshake is over.
    Over,
}

/// What became of a handshake.
pub(crate) enum HandshakeProgress {
    /// More must arrive.
    Wait,
    /// The connection is stream number `stream` of `streams` of this peer.
    Done { peer: Rank, stream: u32, streams: u32, session: Box<Session> },
    /// The handshake has failed, with the reason if the peer is proven or was dialed. A probe that
    /// is answered has no reason.
    Failed(Option<LinkError>),
}

impl DialTarget {
    /// The address of the present attempt.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[self.attempts % self.addresses.len()]
    }
}

impl HandshakeStage {
    /// What is being dialed.
    pub(crate) fn target(&self) -> Option<&DialTarget> {
        match self {
            Self::Connecting(target) | Self::AwaitAnswer(target, _) => Some(target),
            Self::AwaitFirst | Self::AwaitConfirmation(_) | Self::Over => None,
        }
    }
}

impl TcpHandshake {
    /// Waits for the first message of a connection that was accepted.
    pub(crate) fn accept(socket: OwnedFd) -> Self {
        Self::new(socket, HandshakeStage::AwaitFirst)
    }

    /// Begins to dial the target's next address.
    pub(crate) fn dial(target: DialTarget) -> Result<Self, (DialTarget, io::Error)> {
        match net::connect(target.address()) {
            Ok(socket) => Ok(Self::new(socket, HandshakeStage::Connecting(target))),
            Err(error) => Err((target, error)),
        }
    }

    fn new(socket: OwnedFd, stage: HandshakeStage) -> Self {
        Self { socket, since: Instant::now(), stage, got: 0, buffer: [0; BUFFER_BYTES] }
    }

    /// Which connections are dropped first if there are too many: those whose other end has
    /// connected to this rank and has sent no first message that was accepted, then those that have
    /// not confirmed it. None for connections that this rank made.
    pub(crate) fn unproven(&self) -> Option<bool> {
        match &self.stage {
            HandshakeStage::AwaitFirst => Some(false),
            HandshakeStage::AwaitConfirmation(_) => Some(true),
            HandshakeStage::Connecting(_) | HandshakeStage::AwaitAnswer(..) => None,
            HandshakeStage::Over => None,
        }
    }

    /// Does everything that is possible without waiting.
    pub(crate) fn advance(
        &mut self,
        credentials: &Credentials,
        layout: &InboxLayout,
    ) -> HandshakeProgress {
        loop {
            if let HandshakeStage::Connecting(target) = &self.stage {
                match self.begin(target, credentials) {
                    Ok(Some(stage)) => self.stage = stage,
                    Ok(None) => return HandshakeProgress::Wait,
                    Err(failed) => return failed,
                }
            }
            let want = match self.stage {
                HandshakeStage::AwaitFirst => FIRST_BYTES,
                HandshakeStage::AwaitConfirmation(_) => CONFIRMATION_BYTES,
                HandshakeStage::AwaitAnswer(..) => ANSWER_BYTES,
                HandshakeStage::Connecting(_) | HandshakeStage::Over => 0,
            };
            while self.got < want {
                let rest = &mut self.buffer[self.got..want];
                let mut pieces = [piece(rest.as_mut_ptr(), rest.len())];
                // SAFETY: the piece is the rest of the buffer, which `self` owns.
                match unsafe { socket::receive(self.socket.as_fd(), &mut pieces) } {
                    Ok(0) => return self.closed(),
                    Ok(got) => self.got += got,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return HandshakeProgress::Wait;
                    }
                    Err(_) => return self.closed(),
                }
            }
            self.got = 0;
            match self.handle_message(credentials, layout) {
                Ok(None) => {}
                Ok(Some(done)) => return done,
                Err(failed) => return failed,
            }
        }
    }

    /// Sends the first message, if the connection is made. None if it is not.
    fn begin(
        &self,
        target: &DialTarget,
        credentials: &Credentials,
    ) -> Result<Option<HandshakeStage>, HandshakeProgress> {
        let failed = |error| HandshakeProgress::Failed(Some(error));
        socket::connect_result(self.socket.as_fd()).map_err(|error| {
            failed(LinkError::unreachable(target.peer, target.address(), error))
        })?;
        if target.probe {
            return Err(HandshakeProgress::Failed(None));
        }
        let (dialer, first) =
            credentials.dial((Purpose::Tcp, target.stream), target.peer).map_err(failed)?;
        match write(&self.socket, &first) {
            Ok(FIRST_BYTES) => {
                Ok(Some(HandshakeStage::AwaitAnswer(target.clone(), Box::new(dialer))))
            }
            // It is still connecting.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(self.closed()),
        }
    }

    /// Handles a message that has arrived completely.
    fn handle_message(
        &mut self,
        credentials: &Credentials,
        layout: &InboxLayout,
    ) -> Result<Option<HandshakeProgress>, HandshakeProgress> {
        let too_short = HandshakeProgress::Failed(None);
        let other_shape = |peer| {
            let why = "its links have another shape; were the two ranks configured differently?";
            HandshakeProgress::Failed(Some(LinkError::Corrupt { peer, why }))
        };
        match std::mem::replace(&mut self.stage, HandshakeStage::Over) {
            HandshakeStage::AwaitFirst => {
                let first: &[u8; FIRST_BYTES] = self.buffer.first_chunk().ok_or(too_short)?;
                // The number of streams is only in the dialer's shape.
                let data = shape_data(layout, 0);
                match credentials.answer(Purpose::Tcp, first, &data) {
                    Ok((listener, answer)) => {
                        self.stage = HandshakeStage::AwaitConfirmation(Box::new(listener));
                        self.send(&answer)?;
                        Ok(None)
                    }
                    Err(refused) => {
                        strangers::report(
                            log::Level::Warn,
                            format_args!(
                                "rank {}: refused a connection without the communicator's secret",
                                credentials.rank
                            ),
                        );
                        if let Some(reply) = refused.reply {
                            let _ = write(&self.socket, &reply);
                        }
                        Err(HandshakeProgress::Failed(None))
                    }
                }
            }
            HandshakeStage::AwaitConfirmation(listener) => {
                let confirmation = self.buffer.first_chunk().ok_or(too_short)?;
                // Until now the peer may be someone who repeats its first message, so that nothing
                // is reported of it.
                let (session, binding, data) =
                    listener.finish(confirmation).map_err(|_| HandshakeProgress::Failed(None))?;
                let (peer, stream) = (binding.from, binding.stream);
                let streams = streams_of(&data, layout).ok_or_else(|| other_shape(peer))?;
                let session = Box::new(session);
                Ok(Some(HandshakeProgress::Done { peer, stream, streams, session }))
            }
            HandshakeStage::AwaitAnswer(target, dialer) => {
                let DialTarget { peer, stream, streams, .. } = target;
                self.stage = HandshakeStage::Connecting(target);
                let answer = self.buffer.first_chunk().ok_or(too_short)?;
                let (session, theirs, confirmation) = dialer
                    .finish(answer, &shape_data(layout, streams))
                    .map_err(|why| HandshakeProgress::Failed(Some(refused(peer, why))))?;
                // Sent even if the shapes differ, so that the other end can report it too.
                self.send(&confirmation)?;
                if streams_of(&theirs, layout).is_none() {
                    return Err(other_shape(peer));
                }
                let session = Box::new(session);
                Ok(Some(HandshakeProgress::Done { peer, stream, streams, session }))
            }
            HandshakeStage::Connecting(_) | HandshakeStage::Over => Ok(None),
        }
    }

    /// Sends a message. Messages of a handshake are small: a new socket has room for all of them.
    fn send(&self, bytes: &[u8]) -> Result<(), HandshakeProgress> {
        match write(&self.socket, bytes) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            _ => Err(self.closed()),
        }
    }

    /// The failure if the other end closed the connection. It may have said why before.
    fn closed(&self) -> HandshakeProgress {
        let said = self.buffer.first_chunk().filter(|head| self.got >= head.len());
        HandshakeProgress::Failed(self.stage.target().map(|target| {
            match said.and_then(noise::refusal_in) {
                Some(refusal) => refused(target.peer, refusal),
                None => LinkError::Refused {
                    peer: target.peer,
                    why: "it closed the connection before it was made",
                },
            }
        }))
    }
}

/// The shape of the links as data of the handshake.
fn shape_data(layout: &InboxLayout, streams: u32) -> [u8; DATA_BYTES] {
    let mut data = [0; DATA_BYTES];
    data[..SHAPE_BYTES].copy_from_slice(&encode_shape(layout, streams));
    data
}

/// The number of streams in a peer's data; `None` if the shape differs from this rank's.
fn streams_of(data: &[u8; DATA_BYTES], layout: &InboxLayout) -> Option<u32> {
    data.first_chunk().and_then(|shape| streams_in_shape(shape, layout))
}

fn write(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut pieces = [piece(bytes.as_ptr().cast_mut(), bytes.len())];
    // SAFETY: `bytes` is readable and is only read.
    unsafe { socket::send(socket.as_fd(), &mut pieces) }
}
