//! Control frames: what ranks, and the bootstrap root, send each other over authenticated
//! connections.
//!
//! A frame is a header of 12 bytes (kind, three zero bytes, sequence, length of the body;
//! little-endian) and a body. Decoding trusts nothing: it returns None for what does not fit, and
//! allocates nothing by a length that was read.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::activity::{Activity, HistoryPoint};
use crate::codec::{ByteReader, put_duration, put_text};
use crate::listener_addresses::ListenerAddresses;
use crate::rank_set::RankSet;
use crate::root_share::RootShare;
use crate::verdict::Verdict;
use crate::verdict_codec::{put_ranks, put_verdict, read_ranks, read_verdict};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;
/// Most bytes of the body of any frame but `Up` and `Down`.
pub const MOST_SMALL_BYTES: usize = 8192;
/// Most bytes of one rank in an `Up` or `Down` frame.
pub const MOST_ITEM: usize = 64 << 10;
/// Most bytes of the items of all ranks in a frame.
const MOST_ITEMS: usize = 1 << 30;

/// What a rank tells the bootstrap root about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankRegistration {
    /// The name of its host, to be printed.
    pub host: String,
    /// The number of its process, to be printed.
    pub pid: u32,
    /// How long the rank will wait for the other ranks.
    pub timeout: Duration,
    /// Where the children of the rank connect to it; without addresses if it has no children.
    pub listener: ListenerAddresses,
    /// The share of the ranks for which the rank believes this root to be responsible.
    pub share: RootShare,
}

/// A message between a rank and the root, or between neighbours in the control tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// Rank to root: the rank has come.
    Register(RankRegistration),
    /// Root to rank: where the parent of the rank listens. A later frame replaces an earlier one.
    Parent(ListenerAddresses),
    /// Root to rank, and parent to child: these ranks have not joined.
    Missing {
        /// The ranks.
        ranks: RankSet,
        /// How long the others have waited.
        waited: Duration,
    },
    /// To all neighbours and the root, and from the root to all ranks: the communicator, or the
    /// attempt to make it, has ended.
    Verdict(Verdict),
    /// Rank to root: the rank does not need the root any more.
    LeaveRoot,
    /// From child to parent: the items of the subtree of the child.
    Up {
        /// The number of the exchange.
        sequence: u32,
        /// The items.
        items: Vec<u8>,
    },
    /// Parent to child: the items of all ranks.
    Down {
        /// The number of the exchange.
        sequence: u32,
        /// The items.
        items: Vec<u8>,
    },
    /// To one rank, passed on by the ranks between: what does the rank do?
    Question {
        /// Identifies the question.
        token: u32,
        /// The rank that asks.
        from: Rank,
        /// The rank that is asked.
        to: Rank,
    },
    /// The answer, which goes back in the same way.
    Answer {
        /// The token of the question.
        token: u32,
        /// The rank that was asked.
        from: Rank,
        /// The rank that asked.
        to: Rank,
        /// What the rank does.
        activity: Activity,
    },
    /// To a neighbour: the calls of this rank so far, to be compared.
    History(HistoryPoint),
    /// To a neighbour: this rank leaves, after these calls.
    Leave(HistoryPoint),
    /// To a neighbour of this rank, passed on by the ranks between: its process has ended. It may
    /// have left before.
    Ended(Rank),
}

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    pub(crate) kind: u8,
    pub(crate) sequence: u32,
    /// Bytes of the body.
    pub len: usize,
}

const REGISTER: u8 = 1;
const PARENT: u8 = 2;
const MISSING: u8 = 3;
const VERDICT: u8 = 4;
const LEAVE_ROOT: u8 = 5;
const UP: u8 = 6;
const DOWN: u8 = 7;
const QUESTION: u8 = 8;
const ANSWER: u8 = 9;
const HISTORY: u8 = 10;
const LEAVE: u8 = 11;
const ENDED: u8 = 12;

/// Most bytes of the items in an `Up` or `Down` frame of a communicator of `nranks` ranks.
pub fn most_items(nranks: u32) -> usize {
    let each = crate::items::ITEM_HEADER + MOST_ITEM;
    (nranks as usize).saturating_mul(each).min(MOST_ITEMS)
}

impl FrameHeader {
    /// The header in these bytes. None if the body would be larger than `most_items` for items, or
    /// than its kind allows.
    pub fn decode(bytes: &[u8; HEADER_BYTES], most_items: usize) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let kind = reader.u8()?;
        if reader.array::<3>()? != [0; 3] {
            return None;
        }
        let header = Self { kind, sequence: reader.u32()?, len: reader.u32()? as usize };
        let most = match kind {
            UP | DOWN => most_items,
            REGISTER..=ENDED => MOST_SMALL_BYTES,
            _ => return None,
        };
        (header.len <= most).then_some(header)
    }
}

impl ControlFrame {
    /// Appends the bytes of the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let (kind, sequence) = match self {
            Self::Register(_) => (REGISTER, 0),
            Self::Parent(_) => (PARENT, 0),
            Self::Missing { .. } => (MISSING, 0),
            Self::Verdict(_) => (VERDICT, 0),
            Self::LeaveRoot => (LEAVE_ROOT, 0),
            Self::Up { sequence, .. } => (UP, *sequence),
            Self::Down { sequence, .. } => (DOWN, *sequence),
            Self::Question { .. } => (QUESTION, 0),
            Self::Answer { .. } => (ANSWER, 0),
            Self::History(_) => (HISTORY, 0),
            Self::Leave(_) => (LEAVE, 0),
            Self::Ended(_) => (ENDED, 0),
        };
        out.extend([kind, 0, 0, 0]);
        out.extend(sequence.to_le_bytes());
        out.extend([0; 4]);
        let words = |out: &mut Vec<u8>, words: [u32; 3]| {
            out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
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
            Self::Missing { ranks, waited } => {
                put_ranks(out, ranks);
                put_duration(out, *waited);
            }
            Self::Verdict(verdict) => put_verdict(out, verdict),
            Self::LeaveRoot => {}
            Self::Up { items, .. } | Self::Down { items, .. } => out.extend(items),
            Self::Question { token, from, to } => words(out, [*token, *from, *to]),
            Self::Answer { token, from, to, activity } => {
                words(out, [*token, *from, *to]);
                activity.encode(out);
            }
            Self::History(point) | Self::Leave(point) => point.encode(out),
            Self::Ended(rank) => out.extend(rank.to_le_bytes()),
        }
        let len = (out.len() - start - HEADER_BYTES) as u32;
        out[start + 8..start + 12].copy_from_slice(&len.to_le_bytes());
    }

    /// The frame with this header and body. None if the bytes are not one.
    pub fn decode(header: FrameHeader, body: &[u8]) -> Option<Self> {
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
            MISSING => {
                Self::Missing { ranks: read_ranks(&mut reader)?, waited: reader.duration()? }
            }
            VERDICT => Self::Verdict(read_verdict(&mut reader)?),
            LEAVE_ROOT => Self::LeaveRoot,
            UP => Self::Up { sequence: header.sequence, items: reader.rest().to_vec() },
            DOWN => Self::Down { sequence: header.sequence, items: reader.rest().to_vec() },
            QUESTION => {
                Self::Question { token: reader.u32()?, from: reader.u32()?, to: reader.u32()? }
            }
            ANSWER => Self::Answer {
                token: reader.u32()?,
                from: reader.u32()?,
                to: reader.u32()?,
                activity: Activity::decode(&mut reader)?,
            },
            HISTORY => Self::History(HistoryPoint::decode(&mut reader)?),
            LEAVE => Self::Leave(HistoryPoint::decode(&mut reader)?),
            ENDED => Self::Ended(reader.u32()?),
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

/// One frame of each kind, and a verdict of each kind. For tests of connections too.
#[doc(hidden)]
pub fn examples() -> Vec<ControlFrame> {
    use crate::activity::{MOST_CALLS, RecordedCall, RecorderSnapshot};
    use crate::call_signature::CallSignature;
    let address = std::net::SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 3));
    let listener = ListenerAddresses { host_tag: 9, addresses: vec![address] };
    let waited = Duration::from_millis(1500);
    let ranks = RankSet::new([1, 2, 7]);
    let what = String::from("in call 3 rank 1 calls something else");
    let call = |sequence| RecordedCall {
        sequence,
        signature: CallSignature { what: 3, count: sequence },
        history: sequence << 40,
        took: None,
    };
    let snapshot = RecorderSnapshot {
        sequence: MOST_CALLS + 6,
        in_call: true,
        waits_for: Some(0),
        calls: (7..MOST_CALLS + 7).map(call).collect(),
    };
    let mut frames = vec![
        ControlFrame::Register(RankRegistration {
            host: "host".into(),
            pid: 12,
            timeout: waited,
            listener: listener.clone(),
            share: RootShare { index: 1, count: 3, fingerprint: 1 << 60 },
        }),
        ControlFrame::Parent(listener),
        ControlFrame::Missing { ranks: ranks.clone(), waited },
        ControlFrame::LeaveRoot,
        ControlFrame::Up { sequence: 3, items: vec![1, 2, 3] },
        ControlFrame::Down { sequence: u32::MAX, items: vec![] },
        ControlFrame::Question { token: 1, from: 2, to: 3 },
        ControlFrame::Answer {
            token: 1,
            from: 2,
            to: 3,
            activity: Activity { snapshot, elsewhere: Some(what.clone()) },
        },
        ControlFrame::Answer { token: 1, from: 2, to: 3, activity: Activity::default() },
        ControlFrame::History(HistoryPoint { sequence: 5, hash: u64::MAX }),
        ControlFrame::Leave(HistoryPoint::default()),
        ControlFrame::Ended(7),
    ];
    let verdicts = [
        Verdict::Dead { rank: 4, seen_by: 1 },
        Verdict::Left { rank: 9 },
        Verdict::LeftUnsent { rank: 9, peers: ranks.clone(), messages: 3, bytes: 1 << 40 },
        Verdict::Mismatch { ranks: [1, 2], what: what.clone() },
        Verdict::Timeout { rank: 1, peer: 0, what: what.clone(), waited },
        Verdict::Aborted { by: 3 },
        Verdict::Revoked { by: 2 },
        Verdict::Failed { rank: 3, why: what },
        Verdict::MissingRanks { ranks: ranks.clone(), nranks: 9, waited },
        Verdict::DuplicateRank { rank: 4, host: "n".into(), pid: 77 },
        Verdict::DifferentRankCount { rank: 1, ours: 4, theirs: 5 },
        Verdict::Disagreement { what: "size".into(), ranks },
    ];
    frames.extend(verdicts.map(ControlFrame::Verdict));
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Option<ControlFrame> {
        let (head, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let header = FrameHeader::decode(head.try_into().ok()?, 1 << 20)?;
        ControlFrame::decode(header, body.get(..header.len)?)
    }

    fn encode(frame: &ControlFrame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes
    }

    #[test]
    fn frames_round_trip_and_a_cut_frame_is_refused() {
        for frame in examples() {
            let bytes = encode(&frame);
            assert_eq!(decode(&bytes), Some(frame.clone()));
            assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()), "{frame:?}");
        }
    }

    #[test]
    fn the_largest_small_frame_fits() {
        let ranks = RankSet::new((0..1000).map(|i| 2 * i));
        let what = "x".repeat(1000);
        let frame = ControlFrame::Verdict(Verdict::Disagreement { what, ranks });
        assert!(decode(&encode(&frame)).is_some());
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(kind in 0..15_u8, body: Vec<u8>) {
            let header = FrameHeader { kind, sequence: 0, len: body.len() };
            if let Some(frame) = ControlFrame::decode(header, &body) {
                prop_assert_eq!(decode(&encode(&frame)), Some(frame));
            }
        }

        #[test]
        fn damaged_frames_never_panic(which in 0..23_usize, at: prop::sample::Index, flip: u8) {
            let mut bytes = encode(&examples()[which]);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = decode(&bytes);
        }
    }
}
