//! The handshake of a new stream, from either end, as a state machine that never blocks.
//!
//! It is the handshake of [`handshake`](crate::handshake). The data that TCP adds to it are the
//! shapes of the links, sent after the other end has proven itself. Every message has a fixed size,
//! so a connection that has not proven itself costs no further memory and no parsing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::frame::{SHAPE_BYTES, encode_shape, streams_in_shape};
use super::socket::{self, piece};
use crate::Rank;
use crate::error::LinkError;
use crate::handshake::{
    ConnectionKind, Credentials, HELLO_BYTES, NONCE_BYTES, Nonce, PROOF_BYTES, Proof, SentHello,
};
use crate::inbox::InboxLayout;

/// How long the whole handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest message, from the listener or from the dialer.
const BUFFER_BYTES: usize = PROOF_BYTES + SHAPE_BYTES + HELLO_BYTES;

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
    /// The dialer's hello message.
    AwaitHello(Nonce),
    /// The link shape of a dialer that has proven itself: its rank and the number of the stream.
    AwaitShape(Rank, u32),
    /// The result of connecting.
    Connecting(DialTarget),
    /// The listener's challenge.
    AwaitChallenge(DialTarget),
    /// The listener's proof and link shape.
    AwaitProof(DialTarget, SentHello),
}

/// What became of a handshake.
pub(crate) enum HandshakeProgress {
    /// More must arrive.
    Wait,
    /// The connection is stream number `stream` of `streams` of this peer.
    Done { peer: Rank, stream: u32, streams: u32 },
    /// The handshake has failed, with the reason if the peer is proven or was dialed. A probe that
    /// is answered has no reason.
    Failed(Option<LinkError>),
}

impl TcpHandshake {
    /// Challenges the other end of a connection that was accepted.
    pub(crate) fn accept(socket: OwnedFd) -> Result<Self, LinkError> {
        let challenge = Credentials::nonce()?;
        // A new socket has room for it. If the other end is already gone, reading will show it.
        let _ = write(&socket, &challenge);
        Ok(Self::new(socket, HandshakeStage::AwaitHello(challenge)))
    }

    /// Begins to dial the target's next address.
    pub(crate) fn dial(target: DialTarget) -> Result<Self, (DialTarget, io::Error)> {
        let to = target.addresses[target.attempts % target.addresses.len()];
        match socket::connect(to) {
            Ok(socket) => Ok(Self::new(socket, HandshakeStage::Connecting(target))),
            Err(error) => Err((target, error)),
        }
    }

    fn new(socket: OwnedFd, stage: HandshakeStage) -> Self {
        Self { socket, since: Instant::now(), stage, got: 0, buffer: [0; BUFFER_BYTES] }
    }

    /// Whether the other end has connected to this rank and has not proven itself.
    pub(crate) fn is_unproven(&self) -> bool {
        matches!(self.stage, HandshakeStage::AwaitHello(_))
    }

    /// Does everything that is possible without waiting.
    pub(crate) fn advance(
        &mut self,
        credentials: &Credentials,
        layout: &InboxLayout,
    ) -> HandshakeProgress {
        loop {
            if let HandshakeStage::Connecting(target) = &self.stage {
                if let Err(error) = socket::connect_result(self.socket.as_fd()) {
                    return HandshakeProgress::Failed(Some(LinkError::system("connect", error)));
                }
                if target.probe {
                    return HandshakeProgress::Failed(None);
                }
                self.stage = HandshakeStage::AwaitChallenge(target.clone());
            }
            let want = match self.stage {
                HandshakeStage::AwaitHello(_) => HELLO_BYTES,
                HandshakeStage::AwaitShape(..) => SHAPE_BYTES,
                HandshakeStage::Connecting(_) | HandshakeStage::AwaitChallenge(_) => NONCE_BYTES,
                HandshakeStage::AwaitProof(..) => PROOF_BYTES + SHAPE_BYTES,
            };
            while self.got < want {
                let rest = &mut self.buffer[self.got..want];
                let mut pieces = [piece(rest.as_mut_ptr(), rest.len())];
                // SAFETY: the piece is the rest of the buffer, which `self` owns.
                match unsafe { socket::receive(self.socket.as_fd(), &mut pieces) } {
                    Ok(0) => return self.closed(),
                    Ok(got) => self.got += got,
                    // A socket that is still connecting returns this too.
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
        let buffer = &self.buffer;
        let done = match &self.stage {
            HandshakeStage::AwaitHello(challenge) => {
                let hello: &[u8; HELLO_BYTES] = buffer.first_chunk().ok_or(too_short)?;
                let checked = credentials.check_hello(ConnectionKind::Tcp, *challenge, hello);
                let Some((peer, stream, proof)) = checked else {
                    log::warn!(
                        "rank {}: refused a connection that does not know the communicator's \
                         secret",
                        credentials.rank
                    );
                    return Err(HandshakeProgress::Failed(None));
                };
                // The number of streams is only in the dialer's shape.
                let answer = [&proof[..], &encode_shape(layout, 0)].concat();
                self.send(&answer)?;
                self.stage = HandshakeStage::AwaitShape(peer, stream);
                None
            }
            &HandshakeStage::AwaitShape(peer, stream) => {
                let shape: &[u8; SHAPE_BYTES] = buffer.first_chunk().ok_or(too_short)?;
                let streams = streams_in_shape(shape, layout).ok_or_else(|| other_shape(peer))?;
                Some(HandshakeProgress::Done { peer, stream, streams })
            }
            HandshakeStage::AwaitChallenge(target) => {
                let challenge: &Nonce = buffer.first_chunk().ok_or(too_short)?;
                let connection = (ConnectionKind::Tcp, target.stream);
                let (sent, hello) = credentials
                    .hello(connection, target.peer, *challenge)
                    .map_err(|error| HandshakeProgress::Failed(Some(error)))?;
                self.send(&hello)?;
                self.stage = HandshakeStage::AwaitProof(target.clone(), sent);
                None
            }
            HandshakeStage::AwaitProof(target, sent) => {
                let &DialTarget { peer, stream, streams, .. } = target;
                let (proof, rest): (&Proof, _) = buffer.split_first_chunk().ok_or(too_short)?;
                if !credentials.check_proof(sent, proof) {
                    let why = "it cannot prove that it belongs to the communicator";
                    let error = LinkError::Refused { peer, why };
                    return Err(HandshakeProgress::Failed(Some(error)));
                }
                let shape = rest.first_chunk().ok_or(HandshakeProgress::Failed(None))?;
                let same = streams_in_shape(shape, layout).is_some();
                // Sent even if the shapes differ, so that the other end can report it too.
                self.send(&encode_shape(layout, streams))?;
                if !same {
                    return Err(other_shape(peer));
                }
                Some(HandshakeProgress::Done { peer, stream, streams })
            }
            HandshakeStage::Connecting(_) => None,
        };
        Ok(done)
    }

    /// Sends a message. Messages of a handshake are small: a new socket has room for all of them.
    fn send(&self, bytes: &[u8]) -> Result<(), HandshakeProgress> {
        match write(&self.socket, bytes) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            _ => Err(self.closed()),
        }
    }

    /// The failure if the other end closed the connection.
    fn closed(&self) -> HandshakeProgress {
        HandshakeProgress::Failed(match &self.stage {
            HandshakeStage::AwaitHello(_) => None,
            &HandshakeStage::AwaitShape(peer, _) => {
                let why = "it closed the connection before it was made";
                Some(LinkError::Refused { peer, why })
            }
            HandshakeStage::Connecting(target)
            | HandshakeStage::AwaitChallenge(target)
            | HandshakeStage::AwaitProof(target, _) => {
                let why = "it does not accept this rank; the two hold different secrets or sizes";
                Some(LinkError::Refused { peer: target.peer, why })
            }
        })
    }
}

fn write(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut pieces = [piece(bytes.as_ptr().cast_mut(), bytes.len())];
    // SAFETY: `bytes` is readable and is only read.
    unsafe { socket::send(socket.as_fd(), &mut pieces) }
}
