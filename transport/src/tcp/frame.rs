//! The format of a stream after the handshake, in which each side has given the shape of its links:
//! frames.
//!
//! A frame is a header of 32 bytes (kind, whether a release is awaited, channel, length, sequence,
//! acknowledgement, tag, arrivals; little-endian) and `length` bytes of payload.
//!
//! Frames that end something, abort and leave, travel sealed: they are the payload of a frame of
//! the kind `Sealed`, encrypted and authenticated by the [`Session`](crate::noise::Session) of the
//! stream, with the header in front of it as associated data and 16 bytes of authentication at its
//! end. Nobody else can end a communicator. Messages and acknowledgements are neither encrypted nor
//! authenticated, for their speed; the same form is there for them.

use crate::inbox::InboxLayout;
use crate::link::HeaderDamage;
use crate::noise::{ForgedRecord, Session, TAG_BYTES};

/// Bytes of the header of a frame, which precedes its payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 32;
/// Bytes of a sealed frame without payload, in the frame that carries it.
pub(crate) const SEALED_BYTES: usize = FRAME_HEADER_BYTES + TAG_BYTES;
/// Bytes of a sealed frame with the header in front of it.
pub(crate) const WHOLE_SEALED_BYTES: usize = FRAME_HEADER_BYTES + SEALED_BYTES;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A message; `len` bytes of payload follow.
    Data,
    /// Only an acknowledgement.
    Ack,
    /// An acknowledgement that asks for one: its sender waits until its messages have arrived.
    Ask,
    /// The communicator was aborted by rank `sequence`, for the reason `tag`.
    Abort,
    /// The last frame: its sender has left the communicator.
    Leave,
    /// Carries an abort, a leave or a control frame, encrypted and authenticated.
    Sealed,
    /// A piece of a control message, see [`ControlPiece`].
    Control,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    /// The sender of the message waits for its release, because it has lent the memory.
    pub(crate) release_awaited: bool,
    pub(crate) channel: u16,
    pub(crate) len: u32,
    pub(crate) sequence: u64,
    /// The sequence up to which all messages of the channel's other direction are released.
    pub(crate) ack: u64,
    pub(crate) tag: u32,
    /// How many of the messages after these have arrived in sequence.
    pub(crate) arrived: u32,
}

/// An acknowledgement of nothing.
pub(crate) const EMPTY: Frame = Frame {
    kind: FrameKind::Ack,
    release_awaited: false,
    channel: 0,
    len: 0,
    sequence: 0,
    ack: 0,
    tag: 0,
    arrived: 0,
};

impl Frame {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0] = match self.kind {
            FrameKind::Data => 0,
            FrameKind::Ack => 1,
            FrameKind::Abort => 2,
            FrameKind::Leave => 3,
            FrameKind::Sealed => 4,
            FrameKind::Ask => 5,
            FrameKind::Control => 6,
        };
        out[1] = self.release_awaited.into();
        out[2..4].copy_from_slice(&self.channel.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.ack.to_le_bytes());
        out[24..28].copy_from_slice(&self.tag.to_le_bytes());
        out[28..].copy_from_slice(&self.arrived.to_le_bytes());
        out
    }

    /// The bytes of the header of a message with something wrong in it, for tests.
    #[cold]
    pub(crate) fn damaged(&self, damage: HeaderDamage) -> [u8; FRAME_HEADER_BYTES] {
        match damage {
            HeaderDamage::Length(len) => Self { len: len as u32, ..*self }.encode(),
            HeaderDamage::Sequence(sequence) => Self { sequence, ..*self }.encode(),
            HeaderDamage::Kind(number) => {
                let mut bytes = self.encode();
                bytes[0] = 1 + (number % 255) as u8;
                bytes
            }
        }
    }

    /// `None` if the bytes are not the header of a frame.
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let word = |start: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[start + i]));
        let long = |start: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[start + i]));
        let kind = match bytes[0] {
            0 => FrameKind::Data,
            1 => FrameKind::Ack,
            2 => FrameKind::Abort,
            3 => FrameKind::Leave,
            4 => FrameKind::Sealed,
            5 => FrameKind::Ask,
            6 => FrameKind::Control,
            _ => return None,
        };
        if bytes[1] > 1 {
            return None;
        }
        Some(Self {
            kind,
            release_awaited: bytes[1] == 1,
            channel: u16::from_le_bytes([bytes[2], bytes[3]]),
            len: word(4),
            sequence: long(8),
            ack: long(16),
            tag: word(24),
            arrived: word(28),
        })
    }
}

/// Seals a frame without payload. Returns the whole frame that carries it.
pub(crate) fn seal(frame: &Frame, session: &mut Session) -> [u8; WHOLE_SEALED_BYTES] {
    let carrier = Frame { kind: FrameKind::Sealed, channel: 0, len: SEALED_BYTES as u32, ..EMPTY };
    let mut out = carrier.encode().to_vec();
    session.seal(&carrier.encode(), &frame.encode(), &mut out);
    let mut whole = [0; WHOLE_SEALED_BYTES];
    whole.copy_from_slice(&out);
    whole
}

/// Opens the sealed frame in a whole frame. `None` if no correct peer seals such a frame.
pub(crate) fn open(
    whole: &[u8; WHOLE_SEALED_BYTES],
    session: &mut Session,
) -> Result<Option<Frame>, ForgedRecord> {
    let (header, sealed) = whole.split_at(FRAME_HEADER_BYTES);
    let mut opened = Vec::with_capacity(FRAME_HEADER_BYTES);
    session.open(header, sealed, &mut opened)?;
    let frame = opened.first_chunk().and_then(Frame::decode);
    let travels_sealed = |frame: &Frame| {
        matches!(frame.kind, FrameKind::Abort | FrameKind::Leave | FrameKind::Control)
    };
    Ok(frame.filter(travels_sealed))
}

/// Bytes of a control message that one frame carries.
const PIECE_BYTES: usize = 24;
/// Most bytes of a control message.
pub(crate) const MOST_CONTROL_BYTES: usize = 4096;

/// A piece of a control message: what the ends of a pair tell each other about another way for
/// their messages. It travels sealed, in the fields of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlPiece {
    /// Bytes of the whole message.
    total: u16,
    bytes: [u8; PIECE_BYTES],
}

impl ControlPiece {
    /// The pieces of a message, in order.
    pub(crate) fn cut(message: &[u8]) -> Vec<Self> {
        debug_assert!(!message.is_empty() && message.len() <= MOST_CONTROL_BYTES);
        let piece = |part: &[u8]| {
            let mut bytes = [0; PIECE_BYTES];
            bytes[..part.len()].copy_from_slice(part);
            Self { total: message.len() as u16, bytes }
        };
        message.chunks(PIECE_BYTES).map(piece).collect()
    }

    pub(crate) fn frame(&self) -> Frame {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]));
        Frame {
            kind: FrameKind::Control,
            len: self.total.into(),
            sequence: long(0),
            ack: long(8),
            tag: word(16),
            arrived: word(20),
            ..EMPTY
        }
    }

    /// Appends the piece in a frame to the message of which `begun` has the beginning. Returns the
    /// message if it is whole; `None` if no correct peer sends such a piece.
    pub(crate) fn append(frame: &Frame, begun: &mut Vec<u8>) -> Option<Option<Vec<u8>>> {
        let total = frame.len as usize;
        if total == 0 || total > MOST_CONTROL_BYTES || begun.len() >= total {
            return None;
        }
        begun.extend(frame.sequence.to_le_bytes());
        begun.extend(frame.ack.to_le_bytes());
        begun.extend(frame.tag.to_le_bytes());
        begun.extend(frame.arrived.to_le_bytes());
        if begun.len() < total {
            return Some(None);
        }
        begun.truncate(total);
        Some(Some(std::mem::take(begun)))
    }
}

/// Bytes of an encoded link shape.
pub(crate) const SHAPE_BYTES: usize = 24;

/// Encodes the shape of the links, on which both ends must agree, and the number of streams.
pub(crate) fn encode_shape(layout: &InboxLayout, streams: u32) -> [u8; SHAPE_BYTES] {
    let mut out = [0; SHAPE_BYTES];
    out[..4].copy_from_slice(b"mpt\x02");
    out[4..8].copy_from_slice(&streams.to_le_bytes());
    out[8..12].copy_from_slice(&u32::from(layout.channels).to_le_bytes());
    out[12..16].copy_from_slice(&layout.depth.to_le_bytes());
    out[16..].copy_from_slice(&(layout.slot_bytes as u64).to_le_bytes());
    out
}

/// The number of streams in a peer's link shape; `None` if the rest differs from this rank's shape.
pub(crate) fn streams_in_shape(shape: &[u8; SHAPE_BYTES], layout: &InboxLayout) -> Option<u32> {
    let streams = u32::from_le_bytes(std::array::from_fn(|i| shape[4 + i]));
    (*shape == encode_shape(layout, streams)).then_some(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_put_together_from_their_pieces() {
        for len in [1, 23, 24, 25, 48, 100, MOST_CONTROL_BYTES] {
            let message: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let (pieces, mut begun) = (ControlPiece::cut(&message), Vec::new());
            for (at, piece) in pieces.iter().enumerate() {
                let frame = Frame::decode(&piece.frame().encode()).unwrap();
                let whole = ControlPiece::append(&frame, &mut begun).unwrap();
                assert_eq!(whole.is_some(), at + 1 == pieces.len());
                assert!(whole.is_none_or(|whole| whole == message));
            }
            assert!(begun.is_empty());
        }
        let wrong = |len: usize, begun: &[u8]| {
            let frame = Frame { kind: FrameKind::Control, len: len as u32, ..EMPTY };
            ControlPiece::append(&frame, &mut begun.to_vec()).is_none()
        };
        assert!(wrong(0, &[]) && wrong(MOST_CONTROL_BYTES + 1, &[]));
        assert!(wrong(24, &[0; 24]), "another message is in the middle of one");
    }

    #[test]
    fn frames_and_shapes_decode_to_themselves() {
        let kinds = [FrameKind::Data, FrameKind::Ack, FrameKind::Abort, FrameKind::Leave];
        let others = [FrameKind::Sealed, FrameKind::Ask, FrameKind::Control];
        for kind in kinds.into_iter().chain(others) {
            let frame = Frame {
                kind,
                release_awaited: kind == FrameKind::Data,
                channel: 2,
                len: 3,
                sequence: 4 << 40,
                ack: 5 << 40,
                tag: 6,
                arrived: 7,
            };
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
            let mut bytes = frame.encode();
            bytes[1] = 2;
            assert_eq!(Frame::decode(&bytes), None);
        }
        assert_eq!(Frame::decode(&[9; FRAME_HEADER_BYTES]), None);
        let layout = InboxLayout { nranks: 2, channels: 3, slot_bytes: 64, depth: 5 };
        assert_eq!(streams_in_shape(&encode_shape(&layout, 7), &layout), Some(7));
        let other = InboxLayout { depth: 6, ..layout };
        assert_eq!(streams_in_shape(&encode_shape(&layout, 7), &other), None);
    }
}
