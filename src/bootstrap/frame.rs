//! Frames: the messages that ranks and the bootstrap root send each other after the handshake.
//!
//! A frame is a header of 12 bytes (kind, three zero bytes, sequence, length of the body;
//! little-endian) and a body. Decoding trusts nothing: it returns None for what does not fit, and
//! allocates nothing by a length that was read.

use std::time::Duration;

use super::codec::{ByteReader, put_duration, put_text};
use super::error::BootstrapError;
use super::error_codec::{put_error, put_ranks, read_error, read_ranks};
use super::listener_address::ListenerAddresses;
use super::rank_set::RankSet;
use super::root_share::RootShare;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;
/// Most bytes of the body of any frame but `Up` and `Down`.
pub(super) const MOST_SMALL_BYTES: usize = 2048;
/// Most bytes of a message of the control plane.
pub(super) const MOST_MESSAGE_BYTES: usize = 8192;

/// What a rank tells the bootstrap root about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RankRegistration {
    pub(super) host: String,
    pub(super) pid: u32,
    /// How long the rank will wait for the other ranks.
    pub(super) timeout: Duration,
    /// Where the children of the rank connect to it; without addresses if it has no children.
    pub(super) listener: ListenerAddresses,
    /// The share of the ranks for which the rank believes this root to be responsible.
    pub(super) share: RootShare,
}

/// A message between a rank and the root, or between neighbours in the control tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ControlFrame {
    /// Rank to root: the rank has come.
    Register(RankRegistration),
    /// Root to rank: where the parent of the rank listens. A later frame replaces an earlier one.
    Parent(ListenerAddresses),
    /// Root to rank, and parent to child: these ranks are missing.
    Status { missing: RankSet, waited: Duration },
    /// To all neighbours and the root, and from the root to all ranks: the bootstrap or an exchange
    /// failed.
    Verdict(BootstrapError),
    /// Rank to root: the rank does not need the root any more.
    Leave,
    /// From child to parent: the items of the subtree of the child.
    Up { sequence: u32, items: Vec<u8> },
    /// Parent to child: the items of all ranks.
    Down { sequence: u32, items: Vec<u8> },
    /// In both directions, after init: a control message, whose form only the control plane knows.
    Message(Vec<u8>),
}

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) kind: u8,
    pub(super) sequence: u32,
    pub(super) len: usize,
}

const REGISTER: u8 = 1;
const PARENT: u8 = 2;
const STATUS: u8 = 3;
const VERDICT: u8 = 4;
const LEAVE: u8 = 5;
const UP: u8 = 6;
const DOWN: u8 = 7;
const MESSAGE: u8 = 8;

impl FrameHeader {
    /// The header in these bytes. None if the body would be larger than `most` for items, or than
    /// its kind allows.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], most: usize) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let kind = reader.u8()?;
        if reader.array::<3>()? != [0; 3] {
            return None;
        }
        let header = Self { kind, sequence: reader.u32()?, len: reader.u32()? as usize };
        let most = match kind {
            UP | DOWN => most,
            MESSAGE => MOST_MESSAGE_BYTES,
            REGISTER..=LEAVE => MOST_SMALL_BYTES,
            _ => return None,
        };
        (header.len <= most).then_some(header)
    }
}

impl ControlFrame {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let (kind, sequence) = match self {
            Self::Register(_) => (REGISTER, 0),
            Self::Parent(_) => (PARENT, 0),
            Self::Status { .. } => (STATUS, 0),
            Self::Verdict(_) => (VERDICT, 0),
            Self::Leave => (LEAVE, 0),
            Self::Up { sequence, .. } => (UP, *sequence),
            Self::Down { sequence, .. } => (DOWN, *sequence),
            Self::Message(_) => (MESSAGE, 0),
        };
        out.extend([kind, 0, 0, 0]);
        out.extend(sequence.to_le_bytes());
        out.extend([0; 4]);
        match self {
            Self::Register(it) => {
                put_text(out, &it.host);
                out.extend(it.pid.to_le_bytes());
                put_duration(out, it.timeout);
                let RootShare { index, count, fingerprint } = it.share;
                out.extend(index.to_le_bytes());
                out.extend(count.to_le_bytes());
                out.extend(fingerprint.to_le_bytes());
                it.listener.encode(out, MOST_SMALL_BYTES);
            }
            Self::Parent(listener) => listener.encode(out, MOST_SMALL_BYTES),
            Self::Status { missing, waited } => {
                put_ranks(out, missing);
                put_duration(out, *waited);
            }
            Self::Verdict(error) => put_error(out, error),
            Self::Leave => {}
            Self::Up { items, .. } | Self::Down { items, .. } | Self::Message(items) => {
                out.extend(items);
            }
        }
        let len = (out.len() - start - HEADER_BYTES) as u32;
        out[start + 8..start + 12].copy_from_slice(&len.to_le_bytes());
    }

    pub(super) fn decode(header: FrameHeader, body: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(body);
        let frame = match header.kind {
            REGISTER => Self::Register(RankRegistration {
                host: reader.text()?,
                pid: reader.u32()?,
                timeout: reader.duration()?,
                share: read_share(&mut reader)?,
                listener: ListenerAddresses::decode(&mut reader)?,
            }),
            PARENT => Self::Parent(ListenerAddresses::decode(&mut reader)?),
            STATUS => {
                Self::Status { missing: read_ranks(&mut reader)?, waited: reader.duration()? }
            }
            VERDICT => Self::Verdict(read_error(&mut reader)?),
            LEAVE => Self::Leave,
            UP => Self::Up { sequence: header.sequence, items: reader.rest().to_vec() },
            DOWN => Self::Down { sequence: header.sequence, items: reader.rest().to_vec() },
            MESSAGE => Self::Message(reader.rest().to_vec()),
            _ => return None,
        };
        reader.is_empty().then_some(frame)
    }
}

fn read_share(reader: &mut ByteReader<'_>) -> Option<RootShare> {
    let share =
        RootShare { index: reader.u32()?, count: reader.u32()?, fingerprint: reader.u64()? };
    (share.index < share.count).then_some(share)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Option<ControlFrame> {
        let (head, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let header = FrameHeader::decode(head.try_into().ok()?, 1 << 20)?;
        ControlFrame::decode(header, body.get(..header.len)?)
    }

    pub(in super::super) fn frames() -> Vec<ControlFrame> {
        let listener =
            ListenerAddresses { host_tag: 9, addresses: vec!["[::1]:3".parse().unwrap()] };
        let ms = Duration::from_millis(1500);
        let ranks = RankSet::new([1, 2, 7]);
        let errors = [
            BootstrapError::MissingRanks { ranks: ranks.clone(), nranks: 9, waited: ms },
            BootstrapError::DuplicateRank { rank: 4, host: "n".into(), pid: 77 },
            BootstrapError::DifferentRankCount { rank: 1, ours: 4, theirs: 5 },
            BootstrapError::PeerLost { rank: 5, seen_by: 2 },
            BootstrapError::PeerFailed { rank: 5, why: "full".into() },
            BootstrapError::TimedOut { rank: 1, waiting_for: 3, what: "x".into(), waited: ms },
            BootstrapError::Disagreement { what: "size".into(), ranks: ranks.clone() },
            BootstrapError::Aborted { by: 3 },
        ];
        let mut frames = vec![
            ControlFrame::Register(RankRegistration {
                host: "host".into(),
                pid: 12,
                timeout: ms,
                listener: listener.clone(),
                share: RootShare { index: 1, count: 3, fingerprint: 1 << 60 },
            }),
            ControlFrame::Parent(listener),
            ControlFrame::Status { missing: ranks, waited: ms },
            ControlFrame::Leave,
            ControlFrame::Up { sequence: 3, items: vec![1, 2, 3] },
            ControlFrame::Down { sequence: u32::MAX, items: vec![] },
            ControlFrame::Message(vec![4, 5]),
        ];
        frames.extend(errors.map(ControlFrame::Verdict));
        frames
    }

    #[test]
    fn frames_round_trip_and_a_cut_frame_is_refused() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            assert_eq!(decode(&bytes), Some(frame.clone()));
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), None);
            }
        }
    }

    #[test]
    fn the_largest_small_frame_fits() {
        let ranks = RankSet::new((0..1000).map(|i| 2 * i));
        let what = "x".repeat(1000);
        let mut bytes = Vec::new();
        ControlFrame::Verdict(BootstrapError::Disagreement { what, ranks }).encode(&mut bytes);
        assert!(decode(&bytes).is_some());
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(kind in 0..10_u8, body: Vec<u8>) {
            let header = FrameHeader { kind, sequence: 0, len: body.len() };
            if let Some(frame) = ControlFrame::decode(header, &body) {
                let mut again = Vec::new();
                frame.encode(&mut again);
                prop_assert_eq!(decode(&again), Some(frame));
            }
        }

        #[test]
        fn damaged_frames_never_panic(which in 0..15_usize, at: prop::sample::Index, flip: u8) {
            let mut bytes = Vec::new();
            frames()[which].encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = decode(&bytes);
        }
    }
}
