//! The format of a stream after the handshake: the link shape from each side, then frames.

use crate::inbox::InboxLayout;

/// Bytes of the header of a frame, which precedes its payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 32;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A message; `len` bytes of payload follow.
    Data,
    /// Only an acknowledgement.
    Ack,
    /// The communicator was aborted by rank `sequence`, for the reason `tag`.
    Abort,
    /// The last frame: its sender has left the communicator.
    Leave,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) channel: u16,
    pub(crate) len: u32,
    pub(crate) sequence: u64,
    /// The sequence up to which all messages of the channel's other direction are released.
    pub(crate) ack: u64,
    pub(crate) tag: u32,
}

impl Frame {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.channel.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.ack.to_le_bytes());
        out[24..28].copy_from_slice(&self.tag.to_le_bytes());
        out
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
            _ => return None,
        };
        let channel = u16::from_le_bytes([bytes[2], bytes[3]]);
        Some(Self { kind, channel, len: word(4), sequence: long(8), ack: long(16), tag: word(24) })
    }
}

/// Bytes of an encoded link shape.
pub(crate) const SHAPE_BYTES: usize = 24;

/// Encodes the shape of the links, on which both ends must agree, and the number of streams.
pub(crate) fn encode_shape(layout: &InboxLayout, streams: u32) -> [u8; SHAPE_BYTES] {
    let mut out = [0; SHAPE_BYTES];
    out[..4].copy_from_slice(b"mpt\x01");
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
    fn frames_and_shapes_decode_to_themselves() {
        for kind in [FrameKind::Data, FrameKind::Ack, FrameKind::Abort, FrameKind::Leave] {
            let frame = Frame { kind, channel: 2, len: 3, sequence: 4 << 40, ack: 5 << 40, tag: 6 };
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
        assert_eq!(Frame::decode(&[9; FRAME_HEADER_BYTES]), None);
        let layout = InboxLayout { nranks: 2, channels: 3, slot_bytes: 64, depth: 5 };
        assert_eq!(streams_in_shape(&encode_shape(&layout, 7), &layout), Some(7));
        let other = InboxLayout { depth: 6, ..layout };
        assert_eq!(streams_in_shape(&encode_shape(&layout, 7), &other), None);
    }
}
