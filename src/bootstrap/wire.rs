//! Frames: what authenticated ends say to each other. A header of 12 bytes (kind, three zeros, sequence, length of the
//! body; little-endian), then the body. Decoding trusts nothing: what does not fit is None, and nothing is allocated by a
//! length that was read.

use std::time::Duration;

use super::address::Reach;
use super::error::{BootstrapError, MOST_RANGES, RankSet};
use super::multi_root::Share;

pub(super) const HEADER_BYTES: usize = 12;
/// Most bytes of the body of any frame but `Up` and `Down`.
pub(super) const MOST_SMALL: usize = 2048;
/// Most bytes of a message of the control plane.
pub(super) const MOST_NOTE: usize = 8192;
/// Most bytes of a text.
const MOST_TEXT: usize = 512;

/// What a rank tells the root about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) host: String,
    pub(super) pid: u32,
    /// For how long the rank will wait.
    pub(super) patience: Duration,
    /// Where its children can reach it; no address if it will have none.
    pub(super) reach: Reach,
    /// Which root the rank takes it for.
    pub(super) share: Share,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Rank to root: here I am.
    Register(Registration),
    /// Root to rank: where your parent listens. A later one replaces it.
    Parent(Reach),
    /// Root to rank, parent to child: these are missing.
    Status { missing: RankSet, waited: Duration },
    /// To all neighbours and the root, and from the root to all: it failed, for this reason.
    Verdict(BootstrapError),
    /// Rank to root: I do not need you any more.
    Leave,
    /// Child to parent: the items of my subtree.
    Up { sequence: u32, items: Vec<u8> },
    /// Parent to child: the items of all ranks.
    Down { sequence: u32, items: Vec<u8> },
    /// Either way, after init: a message of the control plane, which alone knows its form.
    Note(Vec<u8>),
}

/// The part of a frame that comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
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
const NOTE: u8 = 8;

impl Header {
    /// The header in these bytes; None if its body would be larger than `most` (for items) or than its kind ever is.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], most: usize) -> Option<Self> {
        let mut take = Take::new(bytes);
        let kind = take.u8()?;
        if take.array::<3>()? != [0; 3] {
            return None;
        }
        let header = Self { kind, sequence: take.u32()?, len: take.u32()? as usize };
        let most = match kind {
            UP | DOWN => most,
            NOTE => MOST_NOTE,
            REGISTER..=LEAVE => MOST_SMALL,
            _ => return None,
        };
        (header.len <= most).then_some(header)
    }
}

impl Frame {
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
            Self::Note(_) => (NOTE, 0),
        };
        out.extend([kind, 0, 0, 0]);
        out.extend(sequence.to_le_bytes());
        out.extend([0; 4]);
        match self {
            Self::Register(it) => {
                put_text(out, &it.host);
                out.extend(it.pid.to_le_bytes());
                put_duration(out, it.patience);
                let Share { index, of, fingerprint } = it.share;
                out.extend(index.to_le_bytes());
                out.extend(of.to_le_bytes());
                out.extend(fingerprint.to_le_bytes());
                it.reach.encode(out, MOST_SMALL);
            }
            Self::Parent(reach) => reach.encode(out, MOST_SMALL),
            Self::Status { missing, waited } => {
                put_ranks(out, missing);
                put_duration(out, *waited);
            }
            Self::Verdict(error) => put_error(out, error),
            Self::Leave => {}
            Self::Up { items, .. } | Self::Down { items, .. } | Self::Note(items) => {
                out.extend(items);
            }
        }
        let len = (out.len() - start - HEADER_BYTES) as u32;
        out[start + 8..start + 12].copy_from_slice(&len.to_le_bytes());
    }

    pub(super) fn decode(header: Header, body: &[u8]) -> Option<Self> {
        let mut take = Take::new(body);
        let frame = match header.kind {
            REGISTER => Self::Register(Registration {
                host: take.text()?,
                pid: take.u32()?,
                patience: take.duration()?,
                share: take.share()?,
                reach: Reach::decode(&mut take)?,
            }),
            PARENT => Self::Parent(Reach::decode(&mut take)?),
            STATUS => Self::Status { missing: take.ranks()?, waited: take.duration()? },
            VERDICT => Self::Verdict(take.error()?),
            LEAVE => Self::Leave,
            UP => Self::Up { sequence: header.sequence, items: take.rest().to_vec() },
            DOWN => Self::Down { sequence: header.sequence, items: take.rest().to_vec() },
            NOTE => Self::Note(take.rest().to_vec()),
            _ => return None,
        };
        take.rest().is_empty().then_some(frame)
    }
}

/// Appends one rank's item to the body of an `Up` or `Down`.
pub(super) fn put_item(out: &mut Vec<u8>, rank: u32, item: &[u8]) {
    out.extend(rank.to_le_bytes());
    out.extend((item.len() as u32).to_le_bytes());
    out.extend(item);
}

/// Bytes that an item takes beside its own.
pub(super) const ITEM_HEADER: usize = 8;

/// The items of a body; the iterator ends with None in place of an item if the body is malformed.
pub(super) fn items(body: &[u8]) -> impl Iterator<Item = Option<(u32, &[u8])>> {
    let mut take = Take::new(body);
    std::iter::from_fn(move || {
        if take.0.is_empty() {
            return None;
        }
        let item = take.u32().and_then(|rank| {
            let len = take.u32()? as usize;
            Some((rank, take.bytes(len)?))
        });
        if item.is_none() {
            take = Take::new(&[]);
        }
        Some(item)
    })
}

/// A reader of bytes that never reads past their end.
pub(crate) struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        if len > MOST_TEXT {
            return None;
        }
        // It will be printed: control characters could forge lines or move the terminal's cursor.
        let text = String::from_utf8_lossy(self.bytes(len)?);
        Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    }

    fn duration(&mut self) -> Option<Duration> {
        // As in the configuration: never so long that adding it to a clock overflows.
        self.u64().filter(|&ms| ms <= 3_153_600_000_000).map(Duration::from_millis)
    }

    fn share(&mut self) -> Option<Share> {
        let share = Share { index: self.u32()?, of: self.u32()?, fingerprint: self.u64()? };
        (share.index < share.of).then_some(share)
    }

    fn ranks(&mut self) -> Option<RankSet> {
        let count = self.u32()?;
        let listed = usize::from(self.u16()?);
        if listed > MOST_RANGES {
            return None;
        }
        let mut ranges = Vec::new();
        let mut total = 0_u64;
        for _ in 0..listed {
            let (first, last) = (self.u32()?, self.u32()?);
            if first > last || ranges.last().is_some_and(|&(_, before)| before >= first) {
                return None;
            }
            total += u64::from(last - first) + 1;
            ranges.push((first, last));
        }
        (total <= u64::from(count)).then_some(RankSet { ranges, count })
    }

    fn error(&mut self) -> Option<BootstrapError> {
        Some(match self.u8()? {
            1 => BootstrapError::MissingRanks {
                ranks: self.ranks()?,
                nranks: self.u32()?,
                waited: self.duration()?,
            },
            2 => BootstrapError::DuplicateRank {
                rank: self.u32()?,
                host: self.text()?,
                pid: self.u32()?,
            },
            3 => BootstrapError::WrongWorld {
                rank: self.u32()?,
                ours: self.u32()?,
                theirs: self.u32()?,
            },
            4 => BootstrapError::PeerLost { rank: self.u32()?, seen_by: self.u32()? },
            5 => BootstrapError::PeerFailed { rank: self.u32()?, why: self.text()? },
            6 => BootstrapError::TimedOut {
                rank: self.u32()?,
                waiting_for: self.u32()?,
                what: self.text()?,
                waited: self.duration()?,
            },
            8 => BootstrapError::Aborted { by: self.u32()? },
            7 => BootstrapError::Disagreement { what: self.text()?, ranks: self.ranks()? },
            _ => return None,
        })
    }
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    // A cut in the middle of a character is mended by the reader.
    let bytes = &text.as_bytes()[..text.len().min(MOST_TEXT)];
    out.extend((bytes.len() as u16).to_le_bytes());
    out.extend(bytes);
}

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    out.extend((duration.as_millis() as u64).to_le_bytes());
}

fn put_ranks(out: &mut Vec<u8>, ranks: &RankSet) {
    out.extend(ranks.count.to_le_bytes());
    out.extend((ranks.ranges.len() as u16).to_le_bytes());
    for (first, last) in &ranks.ranges {
        out.extend(first.to_le_bytes());
        out.extend(last.to_le_bytes());
    }
}

/// Errors that name their rank travel as they are; the others must be wrapped in `PeerFailed` before.
fn put_error(out: &mut Vec<u8>, error: &BootstrapError) {
    match error {
        BootstrapError::MissingRanks { ranks, nranks, waited } => {
            out.push(1);
            put_ranks(out, ranks);
            out.extend(nranks.to_le_bytes());
            put_duration(out, *waited);
        }
        BootstrapError::DuplicateRank { rank, host, pid } => {
            out.push(2);
            out.extend(rank.to_le_bytes());
            put_text(out, host);
            out.extend(pid.to_le_bytes());
        }
        BootstrapError::WrongWorld { rank, ours, theirs } => {
            out.push(3);
            for word in [rank, ours, theirs] {
                out.extend(word.to_le_bytes());
            }
        }
        BootstrapError::PeerLost { rank, seen_by } => {
            out.push(4);
            out.extend(rank.to_le_bytes());
            out.extend(seen_by.to_le_bytes());
        }
        BootstrapError::TimedOut { rank, waiting_for, what, waited } => {
            out.push(6);
            out.extend(rank.to_le_bytes());
            out.extend(waiting_for.to_le_bytes());
            put_text(out, what);
            put_duration(out, *waited);
        }
        BootstrapError::Disagreement { what, ranks } => {
            out.push(7);
            put_text(out, what);
            put_ranks(out, ranks);
        }
        BootstrapError::Aborted { by } => {
            out.push(8);
            out.extend(by.to_le_bytes());
        }
        BootstrapError::PeerFailed { rank, why } => {
            out.push(5);
            out.extend(rank.to_le_bytes());
            put_text(out, why);
        }
        other => {
            debug_assert!(false, "{other} does not travel");
            out.push(5);
            out.extend(0_u32.to_le_bytes());
            put_text(out, &other.to_string());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Option<Frame> {
        let (head, body) = bytes.split_at_checked(HEADER_BYTES)?;
        let header = Header::decode(head.try_into().ok()?, 1 << 20)?;
        Frame::decode(header, body.get(..header.len)?)
    }

    pub(in super::super) fn frames() -> Vec<Frame> {
        let reach = Reach { host_tag: 9, addresses: vec!["[::1]:3".parse().unwrap()] };
        let ms = Duration::from_millis(1500);
        let ranks = RankSet::new([1, 2, 7]);
        let errors = [
            BootstrapError::MissingRanks { ranks: ranks.clone(), nranks: 9, waited: ms },
            BootstrapError::DuplicateRank { rank: 4, host: "n".into(), pid: 77 },
            BootstrapError::WrongWorld { rank: 1, ours: 4, theirs: 5 },
            BootstrapError::PeerLost { rank: 5, seen_by: 2 },
            BootstrapError::PeerFailed { rank: 5, why: "full".into() },
            BootstrapError::TimedOut { rank: 1, waiting_for: 3, what: "x".into(), waited: ms },
            BootstrapError::Disagreement { what: "size".into(), ranks: ranks.clone() },
            BootstrapError::Aborted { by: 3 },
        ];
        let mut frames = vec![
            Frame::Register(Registration {
                host: "host".into(),
                pid: 12,
                patience: ms,
                reach: reach.clone(),
                share: Share { index: 1, of: 3, fingerprint: 1 << 60 },
            }),
            Frame::Parent(reach),
            Frame::Status { missing: ranks, waited: ms },
            Frame::Leave,
            Frame::Up { sequence: 3, items: vec![1, 2, 3] },
            Frame::Down { sequence: u32::MAX, items: vec![] },
            Frame::Note(vec![4, 5]),
        ];
        frames.extend(errors.map(Frame::Verdict));
        frames
    }

    #[test]
    fn round_trip_and_no_frame_survives_a_cut() {
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
        Frame::Verdict(BootstrapError::Disagreement { what, ranks }).encode(&mut bytes);
        assert!(decode(&bytes).is_some());
    }

    #[test]
    fn items_round_trip() {
        let mut body = Vec::new();
        put_item(&mut body, 3, b"abc");
        put_item(&mut body, 4, b"");
        let read: Vec<_> = items(&body).collect();
        assert_eq!(read, [Some((3, &b"abc"[..])), Some((4, &b""[..]))]);
        body.pop();
        assert_eq!(items(&body).last(), Some(None));
    }

    #[test]
    fn text_cannot_forge_lines() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, "a\nb\x1b[2J");
        assert_eq!(Take::new(&bytes).text().as_deref(), Some("a?b?[2J"));
    }

    proptest! {
        #[test]
        fn decoding_anything_never_panics(kind in 0..10_u8, body: Vec<u8>) {
            let header = Header { kind, sequence: 0, len: body.len() };
            if let Some(frame) = Frame::decode(header, &body) {
                let mut again = Vec::new();
                frame.encode(&mut again);
                prop_assert_eq!(decode(&again), Some(frame));
            }
            let _ = items(&body).count();
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
