//! Encoding and decoding of verdicts and sets of ranks, which ranks send each other.

use crate::codec::{ByteReader, put_duration, put_text};
use crate::rank_set::{MOST_RANGES, RankSet};
use crate::verdict::Verdict;

/// Appends a verdict.
pub(crate) fn put_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    let words = |out: &mut Vec<u8>, words: &[u32]| {
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    match verdict {
        Verdict::Dead { rank, seen_by } => {
            out.push(1);
            words(out, &[*rank, *seen_by]);
        }
        Verdict::Left { rank } => {
            out.push(2);
            words(out, &[*rank]);
        }
        Verdict::LeftUnsent { rank, peers, messages, bytes } => {
            out.push(12);
            words(out, &[*rank]);
            put_ranks(out, peers);
            out.extend(messages.to_le_bytes());
            out.extend(bytes.to_le_bytes());
        }
        Verdict::Mismatch { ranks, what } => {
            out.push(3);
            words(out, ranks);
            put_text(out, what);
        }
        Verdict::Timeout { rank, peer, what, waited } => {
            out.push(4);
            words(out, &[*rank, *peer]);
            put_text(out, what);
            put_duration(out, *waited);
        }
        Verdict::Aborted { by } => {
            out.push(5);
            words(out, &[*by]);
        }
        Verdict::Revoked { by } => {
            out.push(11);
            words(out, &[*by]);
        }
        Verdict::Failed { rank, why } => {
            out.push(6);
            words(out, &[*rank]);
            put_text(out, why);
        }
        Verdict::MissingRanks { ranks, nranks, waited } => {
            out.push(7);
            put_ranks(out, ranks);
            words(out, &[*nranks]);
            put_duration(out, *waited);
        }
        Verdict::DuplicateRank { rank, host, pid } => {
            out.push(8);
            words(out, &[*rank, *pid]);
            put_text(out, host);
        }
        Verdict::DifferentRankCount { rank, ours, theirs } => {
            out.push(9);
            words(out, &[*rank, *ours, *theirs]);
        }
        Verdict::Disagreement { what, ranks } => {
            out.push(10);
            put_text(out, what);
            put_ranks(out, ranks);
        }
    }
}

/// Reads what [`put_verdict`] wrote.
pub(crate) fn read_verdict(reader: &mut ByteReader<'_>) -> Option<Verdict> {
    Some(match reader.u8()? {
        1 => Verdict::Dead { rank: reader.u32()?, seen_by: reader.u32()? },
        2 => Verdict::Left { rank: reader.u32()? },
        3 => Verdict::Mismatch { ranks: [reader.u32()?, reader.u32()?], what: reader.text()? },
        4 => Verdict::Timeout {
            rank: reader.u32()?,
            peer: reader.u32()?,
            what: reader.text()?,
            waited: reader.duration()?,
        },
        5 => Verdict::Aborted { by: reader.u32()? },
        6 => Verdict::Failed { rank: reader.u32()?, why: reader.text()? },
        7 => Verdict::MissingRanks {
            ranks: read_ranks(reader)?,
            nranks: reader.u32()?,
            waited: reader.duration()?,
        },
        8 => {
            let (rank, pid) = (reader.u32()?, reader.u32()?);
            Verdict::DuplicateRank { rank, host: reader.text()?, pid }
        }
        9 => Verdict::DifferentRankCount {
            rank: reader.u32()?,
            ours: reader.u32()?,
            theirs: reader.u32()?,
        },
        12 => Verdict::LeftUnsent {
            rank: reader.u32()?,
            peers: read_ranks(reader)?,
            messages: reader.u64()?,
            bytes: reader.u64()?,
        },
        11 => Verdict::Revoked { by: reader.u32()? },
        10 => Verdict::Disagreement { what: reader.text()?, ranks: read_ranks(reader)? },
        _ => return None,
    })
}

/// Appends a set of ranks: the number of its ranks, the number of ranges that are listed, and
/// these.
pub(crate) fn put_ranks(out: &mut Vec<u8>, ranks: &RankSet) {
    out.extend(ranks.count.to_le_bytes());
    out.extend((ranks.ranges.len() as u16).to_le_bytes());
    for (first, last) in &ranks.ranges {
        out.extend(first.to_le_bytes());
        out.extend(last.to_le_bytes());
    }
}

/// Reads what [`put_ranks`] wrote.
pub(crate) fn read_ranks(reader: &mut ByteReader<'_>) -> Option<RankSet> {
    let count = reader.u32()?;
    let listed = usize::from(reader.u16()?);
    if listed > MOST_RANGES {
        return None;
    }
    let mut ranges = Vec::new();
    let mut total = 0_u64;
    for _ in 0..listed {
        let (first, last) = (reader.u32()?, reader.u32()?);
        if first > last || ranges.last().is_some_and(|&(_, before)| before >= first) {
            return None;
        }
        total += u64::from(last - first) + 1;
        ranges.push((first, last));
    }
    (total <= u64::from(count)).then_some(RankSet { ranges, count })
}
