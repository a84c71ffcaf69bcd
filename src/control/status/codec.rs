//! The form of an answer to `maypole ps`.

use std::time::Duration;

use super::{CommunicatorStatus, MOST_BYTES, RankProcess, StatusAnswer};
use maypole_control::call_signature::COLLECTIVES;
use maypole_control::codec::{ByteReader, put_text};

/// The first byte of an answer.
const VERSION: u8 = 2;
/// Stands for no rank.
const NO_RANK: u32 = u32::MAX;

/// The bytes of an answer: as many communicators as fstatus.
pub(super) fn encode(communicators: impl ExactSizeIterator<Item = CommunicatorStatus>) -> Vec<u8> {
    let (mut body, mut count, all) = (Vec::new(), 0_u32, communicators.len() as u32);
    for status in communicators {
        let mut entry = Vec::new();
        entry.extend(status.key.to_le_bytes());
        entry.extend(status.rank.to_le_bytes());
        entry.extend(status.nranks.to_le_bytes());
        entry.extend(status.sequence.to_le_bytes());
        entry.push(u8::from(status.in_call));
        put_text(&mut entry, &status.call);
        entry.extend(status.waits_for.unwrap_or(NO_RANK).to_le_bytes());
        entry.extend(
            status.waited.map_or(u64::MAX, |waited| waited.as_millis() as u64).to_le_bytes(),
        );
        put_text(&mut entry, status.ended.as_deref().unwrap_or(""));
        entry.extend([status.result.0, u8::from(status.result.1)]);
        status.counts.iter().for_each(|count| entry.extend(count.to_le_bytes()));
        let dead = status.dead.as_ref();
        entry.extend(dead.map_or(NO_RANK, |it| it.rank).to_le_bytes());
        entry.extend(dead.map_or(0, |it| it.pid).to_le_bytes());
        put_text(&mut entry, dead.map_or("", |it| &it.host));
        entry.extend((status.here.len() as u32).to_le_bytes());
        for (rank, pid) in &status.here {
            entry.extend(rank.to_le_bytes());
            entry.extend(pid.to_le_bytes());
        }
        if body.len() + entry.len() > MOST_BYTES - 9 {
            break;
        }
        body.extend(entry);
        count += 1;
    }
    let mut bytes = vec![VERSION];
    bytes.extend(count.to_le_bytes());
    bytes.extend((all - count).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads an answer. None if the bytes are not one; decoding trusts nothing.
pub(super) fn decode(bytes: &[u8]) -> Option<StatusAnswer> {
    let mut reader = ByteReader::new(bytes);
    if reader.u8()? != VERSION {
        return None;
    }
    let (count, more) = (reader.u32()?, reader.u32()?);
    let mut all = Vec::new();
    for _ in 0..count {
        let status = CommunicatorStatus {
            key: reader.u64()?,
            rank: reader.u32()?,
            nranks: reader.u32()?,
            sequence: reader.u64()?,
            in_call: reader.u8()? != 0,
            call: reader.text()?,
            waits_for: Some(reader.u32()?).filter(|&rank| rank != NO_RANK),
            waited: Some(reader.u64()?).filter(|&ms| ms != u64::MAX).map(Duration::from_millis),
            ended: Some(reader.text()?).filter(|text| !text.is_empty()),
            result: (reader.u8()?, reader.u8()? != 0),
            counts: read_counts(&mut reader)?,
            dead: read_process(&mut reader)?,
            here: Vec::new(),
        };
        let here = (0..reader.u32()?).map(|_| Some((reader.u32()?, reader.u32()?)));
        all.push(CommunicatorStatus { here: here.collect::<Option<_>>()?, ..status });
    }
    reader.rest().is_empty().then_some(StatusAnswer::Communicators(all, more))
}

fn read_counts(reader: &mut ByteReader<'_>) -> Option<[u64; COLLECTIVES]> {
    let mut counts = [0; COLLECTIVES];
    for count in &mut counts {
        *count = reader.u64()?;
    }
    Some(counts)
}

fn read_process(reader: &mut ByteReader<'_>) -> Option<Option<RankProcess>> {
    let (rank, pid, host) = (reader.u32()?, reader.u32()?, reader.text()?);
    Some((rank != NO_RANK).then_some(RankProcess { rank, host, pid }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maypole_algorithms::Rank;

    fn status(rank: Rank) -> CommunicatorStatus {
        CommunicatorStatus {
            key: 0x1234_5678_9abc_def0,
            rank,
            nranks: 4,
            sequence: 17,
            in_call: true,
            call: "call 17, all_reduce of 3 int32 sum".into(),
            waits_for: Some(0),
            waited: Some(Duration::from_millis(1500)),
            ended: None,
            result: (0, false),
            counts: [17, 0, 0, 0, 0, 0, 0, 3],
            dead: None,
            here: vec![(0, 100), (1, 101)],
        }
    }

    #[test]
    fn answers_round_trip_and_a_cut_answer_is_refused() {
        let idle = CommunicatorStatus {
            waits_for: None,
            waited: None,
            ended: Some("x".into()),
            result: (6, true),
            dead: Some(RankProcess { rank: 2, host: "h".into(), pid: 102 }),
            ..status(3)
        };
        let bytes = encode([status(1), idle.clone()].into_iter());
        assert_eq!(decode(&bytes), Some(StatusAnswer::Communicators(vec![status(1), idle], 0)));
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()));
    }

    #[test]
    fn an_answer_is_bounded_and_contains_how_many_did_not_fit() {
        let bytes = encode((0..4000).map(status));
        assert!(bytes.len() <= MOST_BYTES);
        let Some(StatusAnswer::Communicators(listed, more)) = decode(&bytes) else {
            panic!("an answer")
        };
        assert_eq!(listed.len() + more as usize, 4000);
        assert!(more > 0);
    }
}
