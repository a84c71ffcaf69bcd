//! Encoding and decoding of errors and sets of ranks, which ranks send each other.

use super::codec::{ByteReader, put_duration, put_text};
use super::error::BootstrapError;
use super::rank_set::{MOST_RANGES, RankSet};

/// Appends an error that names its rank. Other errors must be wrapped in `PeerFailed` before
/// (`BootstrapError::for_others`).
pub(super) fn put_error(out: &mut Vec<u8>, error: &BootstrapError) {
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
        BootstrapError::DifferentRankCount { rank, ours, theirs } => {
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
            debug_assert!(false, "{other} cannot be sent");
            out.push(5);
            out.extend(0_u32.to_le_bytes());
            put_text(out, &other.to_string());
        }
    }
}

/// Reads what [`put_error`] wrote.
pub(super) fn read_error(reader: &mut ByteReader<'_>) -> Option<BootstrapError> {
    Some(match reader.u8()? {
        1 => BootstrapError::MissingRanks {
            ranks: read_ranks(reader)?,
            nranks: reader.u32()?,
            waited: reader.duration()?,
        },
        2 => BootstrapError::DuplicateRank {
            rank: reader.u32()?,
            host: reader.text()?,
            pid: reader.u32()?,
        },
        3 => BootstrapError::DifferentRankCount {
            rank: reader.u32()?,
            ours: reader.u32()?,
            theirs: reader.u32()?,
        },
        4 => BootstrapError::PeerLost { rank: reader.u32()?, seen_by: reader.u32()? },
        5 => BootstrapError::PeerFailed { rank: reader.u32()?, why: reader.text()? },
        6 => BootstrapError::TimedOut {
            rank: reader.u32()?,
            waiting_for: reader.u32()?,
            what: reader.text()?,
            waited: reader.duration()?,
        },
        8 => BootstrapError::Aborted { by: reader.u32()? },
        7 => BootstrapError::Disagreement { what: reader.text()?, ranks: read_ranks(reader)? },
        _ => return None,
    })
}

/// Appends a set of ranks: the number of its ranks, the number of ranges that are listed, and
/// these.
pub(super) fn put_ranks(out: &mut Vec<u8>, ranks: &RankSet) {
    out.extend(ranks.count.to_le_bytes());
    out.extend((ranks.ranges.len() as u16).to_le_bytes());
    for (first, last) in &ranks.ranges {
        out.extend(first.to_le_bytes());
        out.extend(last.to_le_bytes());
    }
}

/// Reads what [`put_ranks`] wrote.
pub(super) fn read_ranks(reader: &mut ByteReader<'_>) -> Option<RankSet> {
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
