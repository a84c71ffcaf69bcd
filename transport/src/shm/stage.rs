//! How far a connection to another process has come.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sharing::{SEGMENT_FRAME_BYTES, SegmentSharing};
use super::socket;
use crate::Rank;
use crate::inbox::PeerInbox;
use crate::noise::{self, CONFIRMATION_BYTES, DATA_BYTES, FIRST_BYTES};
use crate::peers::PeerTable;

/// How long a connection may take to prove itself.
pub(super) const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection and its stage.
pub(super) struct ShmConnection {
    pub(super) stream: Arc<UnixStream>,
    pub(super) stage: ConnectionStage,
}

pub(super) enum ConnectionStage {
    /// The peer has not sent all of its first message.
    AwaitFirst { since: Instant, first: [u8; FIRST_BYTES], got: usize },
    /// The peer has not sent all of its confirmation and its inbox.
    AwaitConfirmation { since: Instant, peer: Rank, confirmation: Box<PartialConfirmation> },
    /// Inboxes are exchanged.
    Connected { peer: Rank, sharing: Arc<SegmentSharing>, frame: Box<PartialFrame> },
}

/// A confirmation of which `got` bytes have arrived.
pub(super) struct PartialConfirmation {
    pub(super) listener: noise::Listener,
    pub(super) bytes: [u8; CONFIRMATION_BYTES],
    pub(super) got: usize,
    pub(super) file: Option<OwnedFd>,
    /// Why there is no room for the descriptor.
    pub(super) no_room: Option<io::Error>,
}

/// What a rank says of its inbox in a handshake: the word that is in the memory of the inbox.
pub(super) fn word_data(peers: &PeerTable) -> [u8; DATA_BYTES] {
    let mut data = [0; DATA_BYTES];
    data[WORD_AT].copy_from_slice(&peers.inbox.header().identity().word.to_le_bytes());
    data
}

/// Whether the memory of this inbox has the word that its owner has said.
pub(super) fn has_word(inbox: &PeerInbox, said: &[u8; DATA_BYTES]) -> bool {
    inbox.header().identity().word.to_le_bytes() == said[WORD_AT]
}

/// Where the word is in the data of a handshake.
const WORD_AT: std::ops::Range<usize> = 8..16;

/// Why an inbox without the right word is refused.
pub(super) const OTHER_MEMORY: &str = "what it shows of its memory is not what it says";

/// What the dialer says about inboxes in its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InboxAnswer {
    /// It has mapped the inbox of the listener and sends its own.
    Sent,
    /// It could not use the inbox of the listener.
    Refused,
}

impl InboxAnswer {
    /// The data of the confirmation of a rank with these peers.
    pub(super) fn to_data(self, peers: &PeerTable) -> [u8; DATA_BYTES] {
        let mut data = word_data(peers);
        data[0] = (self == Self::Refused).into();
        data
    }

    /// Whether this is the data of a dialer that sends its inbox.
    pub(super) fn is_sent(data: &[u8; DATA_BYTES]) -> bool {
        data[0] == 0
    }
}

/// A frame of which `got` bytes have arrived.
#[derive(Default)]
pub(super) struct PartialFrame {
    pub(super) bytes: [u8; SEGMENT_FRAME_BYTES],
    pub(super) got: usize,
    pub(super) file: Option<OwnedFd>,
}

impl ShmConnection {
    /// A connection over which inboxes are exchanged.
    pub(super) fn connected(peer: Rank, sharing: Arc<SegmentSharing>) -> Self {
        let stream = sharing.stream().clone();
        Self { stream, stage: ConnectionStage::Connected { peer, sharing, frame: Box::default() } }
    }
}

impl ConnectionStage {
    /// When the connection must reach its next stage, if that is limited.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::AwaitFirst { since, .. } | Self::AwaitConfirmation { since, .. } => {
                Some(*since + PROOF_TIMEOUT)
            }
            Self::Connected { .. } => None,
        }
    }
}

impl PartialConfirmation {
    /// Reads more of it, and the descriptor that comes with it. Returns whether it is complete.
    pub(super) fn read(&mut self, stream: &UnixStream) -> Result<bool, NextAction> {
        match socket::receive(stream, &mut self.bytes[self.got..]) {
            Ok((0, _)) => Err(NextAction::Drop),
            Ok((got, file)) => {
                self.got += got;
                self.file = file.or(self.file.take());
                Ok(self.got == CONFIRMATION_BYTES)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(NextAction::Wait),
            // The confirmation has arrived, but the process has no room for its descriptor.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                self.got = CONFIRMATION_BYTES;
                self.no_room = Some(error);
                Ok(true)
            }
            Err(_) => Err(NextAction::Drop),
        }
    }
}

/// What to do next with a connection.
pub(super) enum NextAction {
    Wait,
    Continue,
    Drop,
}
