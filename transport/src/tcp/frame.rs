//! What travels on a stream once both ends have proven themselves: a shape from each side, then frames.

use crate::inbox::InboxLayout;

/// Bytes before every payload.
pub(crate) const HEADER: usize = 32;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message; `len` bytes follow.
    Data,
    /// An acknowledgement and nothing else.
    Ack,
    /// The communicator was aborted: by the rank in `sequence`, for the reason in `tag`.
    Abort,
    /// The last frame: its sender has left in peace.
    Farewell,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) channel: u16,
    pub(crate) len: u32,
    pub(crate) sequence: u64,
    /// All messages of the other direction of the channel up to and with this one are released.
    pub(crate) ack: u64,
    pub(crate) tag: u32,
}

impl Frame {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.channel.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.ack.to_le_bytes());
        out[24..28].copy_from_slice(&self.tag.to_le_bytes());
        out
    }

    /// None if it is no frame.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let kind = match bytes[0] {
            0 => Kind::Data,
            1 => Kind::Ack,
            2 => Kind::Abort,
            3 => Kind::Farewell,
            _ => return None,
        };
        let channel = u16::from_le_bytes([bytes[2], bytes[3]]);
        Some(Self { kind, channel, len: word(4), sequence: long(8), ack: long(16), tag: word(24) })
    }
}

/// Bytes of a shape.
pub(crate) const SHAPE: usize = 24;

/// What both ends must agree on, and how many streams there are.
pub(crate) fn shape(layout: &InboxLayout, streams: u32) -> [u8; SHAPE] {
    let mut out = [0; SHAPE];
    out[..4].copy_from_slice(b"mpt\x01");
    out[4..8].copy_from_slice(&streams.to_le_bytes());
    out[8..12].copy_from_slice(&u32::from(layout.channels).to_le_bytes());
    out[12..16].copy_from_slice(&layout.depth.to_le_bytes());
    out[16..].copy_from_slice(&(layout.slot_bytes as u64).to_le_bytes());
    out
}

/// The number of streams that a shape states, if the rest is ours.
pub(crate) fn streams_of(theirs: &[u8; SHAPE], layout: &InboxLayout) -> Option<u32> {
    let streams = u32::from_le_bytes(std::array::from_fn(|i| theirs[4 + i]));
    (*theirs == shape(layout, streams)).then_some(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_shapes_survive_the_wire() {
        for kind in [Kind::Data, Kind::Ack, Kind::Abort, Kind::Farewell] {
            let frame = Frame { kind, channel: 2, len: 3, sequence: 4 << 40, ack: 5 << 40, tag: 6 };
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
        assert_eq!(Frame::decode(&[9; HEADER]), None);
        let layout = InboxLayout { nranks: 2, channels: 3, slot_bytes: 64, depth: 5 };
        assert_eq!(streams_of(&shape(&layout, 7), &layout), Some(7));
        let other = InboxLayout { depth: 6, ..layout };
        assert_eq!(streams_of(&shape(&layout, 7), &other), None);
    }
}
