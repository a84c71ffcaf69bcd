//! Control messages: what ranks send each other over the control tree after init. Decoding trusts
//! nothing.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::bootstrap::{ByteReader, put_text};
use crate::call_signature::CallSignature;
use crate::control::flight_recorder::{KEPT, RecordedCall, RecorderSnapshot};
use crate::control::verdict::Verdict;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlMessage {
    /// To a neighbour: this rank leaves.
    Leave,
    /// To all ranks: the communicator has ended.
    Verdict(Verdict),
    /// To one rank, passed on by the ranks between: what does the rank do?
    Question { token: u32, from: Rank, to: Rank },
    /// The answer, which goes back in the same way.
    Answer { token: u32, from: Rank, to: Rank, answer: ActivityAnswer },
}

/// What a rank is doing, as it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ActivityAnswer {
    pub(crate) snapshot: RecorderSnapshot,
    /// The call of another communicator in which its thread is, if it is in no call of this one.
    pub(crate) elsewhere: Option<String>,
}

const LEAVE: u8 = 1;
const VERDICT: u8 = 2;
const QUESTION: u8 = 3;
const ANSWER: u8 = 4;
/// Stands for no rank.
const NO_RANK: u32 = u32::MAX;

impl ControlMessage {
    /// The bytes of the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Leave => out.push(LEAVE),
            Self::Verdict(verdict) => {
                out.push(VERDICT);
                put_verdict(&mut out, verdict);
            }
            Self::Question { token, from, to } => {
                out.push(QUESTION);
                put_words(&mut out, [*token, *from, *to]);
            }
            Self::Answer { token, from, to, answer } => {
                out.push(ANSWER);
                put_words(&mut out, [*token, *from, *to]);
                put_answer(&mut out, answer);
            }
        }
        out
    }

    /// Reads a message. None if the bytes are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = ByteReader::new(bytes);
        let message = match reader.u8()? {
            LEAVE => Self::Leave,
            VERDICT => Self::Verdict(read_verdict(&mut reader)?),
            QUESTION => {
                Self::Question { token: reader.u32()?, from: reader.u32()?, to: reader.u32()? }
            }
            ANSWER => Self::Answer {
                token: reader.u32()?,
                from: reader.u32()?,
                to: reader.u32()?,
                answer: read_answer(&mut reader)?,
            },
            _ => return None,
        };
        reader.rest().is_empty().then_some(message)
    }
}

fn put_words<const N: usize>(out: &mut Vec<u8>, words: [u32; N]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    match verdict {
        Verdict::Dead { rank } => {
            out.push(1);
            put_words(out, [*rank]);
        }
        Verdict::Mismatch { ranks, what } => {
            out.push(2);
            put_words(out, *ranks);
            put_text(out, what);
        }
        Verdict::Timeout { rank, peer, what, waited } => {
            out.push(3);
            put_words(out, [*rank, *peer]);
            put_text(out, what);
            out.extend((waited.as_millis() as u64).to_le_bytes());
        }
        Verdict::Aborted { by } => {
            out.push(4);
            put_words(out, [*by]);
        }
        Verdict::Revoked { by } => {
            out.push(7);
            put_words(out, [*by]);
        }
        Verdict::Left { rank } => {
            out.push(6);
            put_words(out, [*rank]);
        }
        Verdict::Failed { rank, why } => {
            out.push(5);
            put_words(out, [*rank]);
            put_text(out, why);
        }
    }
}

fn read_verdict(reader: &mut ByteReader<'_>) -> Option<Verdict> {
    Some(match reader.u8()? {
        1 => Verdict::Dead { rank: reader.u32()? },
        2 => Verdict::Mismatch { ranks: [reader.u32()?, reader.u32()?], what: reader.text()? },
        3 => Verdict::Timeout {
            rank: reader.u32()?,
            peer: reader.u32()?,
            what: reader.text()?,
            waited: Duration::from_millis(reader.u64()?),
        },
        4 => Verdict::Aborted { by: reader.u32()? },
        7 => Verdict::Revoked { by: reader.u32()? },
        6 => Verdict::Left { rank: reader.u32()? },
        5 => Verdict::Failed { rank: reader.u32()?, why: reader.text()? },
        _ => return None,
    })
}

fn put_answer(out: &mut Vec<u8>, answer: &ActivityAnswer) {
    let ActivityAnswer { snapshot, elsewhere } = answer;
    let RecorderSnapshot { sequence, in_call, waits_for, calls } = snapshot;
    out.extend(sequence.to_le_bytes());
    out.push(u8::from(*in_call));
    put_words(out, [waits_for.unwrap_or(NO_RANK)]);
    out.push(calls.len() as u8);
    for RecordedCall { sequence, signature, took: _ } in calls {
        for word in [*sequence, signature.what, signature.count] {
            out.extend(word.to_le_bytes());
        }
    }
    put_text(out, elsewhere.as_deref().unwrap_or(""));
}

fn read_answer(reader: &mut ByteReader<'_>) -> Option<ActivityAnswer> {
    let sequence = reader.u64()?;
    let in_call = reader.u8()? != 0;
    let waits_for = Some(reader.u32()?).filter(|&rank| rank != NO_RANK);
    let count = u64::from(reader.u8()?);
    if count > KEPT {
        return None;
    }
    let mut calls = Vec::new();
    for _ in 0..count {
        let (sequence, what, count) = (reader.u64()?, reader.u64()?, reader.u64()?);
        calls.push(RecordedCall { sequence, signature: CallSignature { what, count }, took: None });
    }
    let elsewhere = Some(reader.text()?).filter(|text| !text.is_empty());
    Some(ActivityAnswer {
        snapshot: RecorderSnapshot { sequence, in_call, waits_for, calls },
        elsewhere,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn messages() -> Vec<ControlMessage> {
        let call = |sequence| RecordedCall {
            sequence,
            signature: CallSignature { what: 3, count: sequence },
            took: None,
        };
        let snapshot = RecorderSnapshot {
            sequence: 70,
            in_call: true,
            waits_for: Some(0),
            calls: (7..=70).map(call).collect(),
        };
        let what = String::from("in call 3 rank 1 calls something else");
        let waited = Duration::from_millis(1500);
        let mut messages: Vec<ControlMessage> = [
            Verdict::Dead { rank: 4 },
            Verdict::Mismatch { ranks: [1, 2], what: what.clone() },
            Verdict::Timeout { rank: 1, peer: 0, what: what.clone(), waited },
            Verdict::Aborted { by: 3 },
            Verdict::Revoked { by: 2 },
            Verdict::Left { rank: 9 },
            Verdict::Failed { rank: 3, why: what.clone() },
        ]
        .map(ControlMessage::Verdict)
        .to_vec();
        messages.push(ControlMessage::Leave);
        messages.push(ControlMessage::Question { token: 1, from: 2, to: 3 });
        let answer = ActivityAnswer { snapshot, elsewhere: Some(what) };
        messages.push(ControlMessage::Answer { token: 1, from: 2, to: 3, answer });
        let answer = ActivityAnswer::default();
        messages.push(ControlMessage::Answer { token: 1, from: 2, to: 3, answer });
        messages
    }

    #[test]
    fn messages_round_trip_and_a_cut_message_is_refused() {
        for message in messages() {
            let bytes = message.encode();
            assert!(bytes.len() < 4096);
            assert_eq!(ControlMessage::decode(&bytes), Some(message));
            for cut in 0..bytes.len() {
                assert_eq!(ControlMessage::decode(&bytes[..cut]), None);
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(which in 0..10_usize, at: prop::sample::Index, flip: u8) {
            let mut bytes = messages()[which].encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Some(message) = ControlMessage::decode(&bytes) {
                let _ = format!("{message:?}");
            }
        }
    }
}
