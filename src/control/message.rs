//! The messages of the control plane, as they travel over the tree. Decoding trusts nothing.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::bootstrap::{Take, put_text};
use crate::call_signature::CallSignature;
use crate::control::flight_recorder::{KEPT, RecordedCall, RecorderSnapshot};
use crate::control::verdict::Verdict;

/// What ranks tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// To a neighbour: this rank leaves in peace.
    Leave,
    /// To all: it is over.
    Verdict(Verdict),
    /// To one rank, passed on by those between: what are you doing?
    Ask { token: u32, from: Rank, to: Rank },
    /// And back.
    Answer { token: u32, from: Rank, to: Rank, answer: Answer },
}

/// What a rank says it is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) snapshot: RecorderSnapshot,
    /// What its thread does in another communicator, if this one is idle.
    pub(crate) elsewhere: Option<String>,
}

const LEAVE: u8 = 1;
const VERDICT: u8 = 2;
const ASK: u8 = 3;
const ANSWER: u8 = 4;
/// In place of a rank.
const NOBODY: u32 = u32::MAX;

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Leave => out.push(LEAVE),
            Self::Verdict(verdict) => {
                out.push(VERDICT);
                put_verdict(&mut out, verdict);
            }
            Self::Ask { token, from, to } => {
                out.push(ASK);
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

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take::new(bytes);
        let note = match take.u8()? {
            LEAVE => Self::Leave,
            VERDICT => Self::Verdict(verdict(&mut take)?),
            ASK => Self::Ask { token: take.u32()?, from: take.u32()?, to: take.u32()? },
            ANSWER => Self::Answer {
                token: take.u32()?,
                from: take.u32()?,
                to: take.u32()?,
                answer: answer(&mut take)?,
            },
            _ => return None,
        };
        take.rest().is_empty().then_some(note)
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

fn verdict(take: &mut Take<'_>) -> Option<Verdict> {
    Some(match take.u8()? {
        1 => Verdict::Dead { rank: take.u32()? },
        2 => Verdict::Mismatch { ranks: [take.u32()?, take.u32()?], what: take.text()? },
        3 => Verdict::Timeout {
            rank: take.u32()?,
            peer: take.u32()?,
            what: take.text()?,
            waited: Duration::from_millis(take.u64()?),
        },
        4 => Verdict::Aborted { by: take.u32()? },
        6 => Verdict::Left { rank: take.u32()? },
        5 => Verdict::Failed { rank: take.u32()?, why: take.text()? },
        _ => return None,
    })
}

fn put_answer(out: &mut Vec<u8>, answer: &Answer) {
    let Answer { snapshot, elsewhere } = answer;
    let RecorderSnapshot { sequence, in_call, waits_for, calls } = snapshot;
    out.extend(sequence.to_le_bytes());
    out.push(u8::from(*in_call));
    put_words(out, [waits_for.unwrap_or(NOBODY)]);
    out.push(calls.len() as u8);
    for RecordedCall { sequence, signature, took: _ } in calls {
        for word in [*sequence, signature.what, signature.count] {
            out.extend(word.to_le_bytes());
        }
    }
    put_text(out, elsewhere.as_deref().unwrap_or(""));
}

fn answer(take: &mut Take<'_>) -> Option<Answer> {
    let sequence = take.u64()?;
    let in_call = take.u8()? != 0;
    let waits_for = Some(take.u32()?).filter(|&rank| rank != NOBODY);
    let count = u64::from(take.u8()?);
    if count > KEPT {
        return None;
    }
    let mut calls = Vec::new();
    for _ in 0..count {
        let (sequence, what, count) = (take.u64()?, take.u64()?, take.u64()?);
        calls.push(RecordedCall { sequence, signature: CallSignature { what, count }, took: None });
    }
    let elsewhere = Some(take.text()?).filter(|text| !text.is_empty());
    Some(Answer { snapshot: RecorderSnapshot { sequence, in_call, waits_for, calls }, elsewhere })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn notes() -> Vec<Note> {
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
        let mut notes: Vec<Note> = [
            Verdict::Dead { rank: 4 },
            Verdict::Mismatch { ranks: [1, 2], what: what.clone() },
            Verdict::Timeout { rank: 1, peer: 0, what: what.clone(), waited },
            Verdict::Aborted { by: 3 },
            Verdict::Left { rank: 9 },
            Verdict::Failed { rank: 3, why: what.clone() },
        ]
        .map(Note::Verdict)
        .to_vec();
        notes.push(Note::Leave);
        notes.push(Note::Ask { token: 1, from: 2, to: 3 });
        let answer = Answer { snapshot, elsewhere: Some(what) };
        notes.push(Note::Answer { token: 1, from: 2, to: 3, answer });
        let answer = Answer::default();
        notes.push(Note::Answer { token: 1, from: 2, to: 3, answer });
        notes
    }

    #[test]
    fn round_trip_and_no_note_survives_a_cut() {
        for note in notes() {
            let bytes = note.encode();
            assert!(bytes.len() < 4096);
            assert_eq!(Note::decode(&bytes), Some(note));
            for cut in 0..bytes.len() {
                assert_eq!(Note::decode(&bytes[..cut]), None);
            }
        }
    }

    proptest! {
        #[test]
        fn damaged_notes_never_panic(which in 0..10_usize, at: prop::sample::Index, flip: u8) {
            let mut bytes = notes()[which].encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Some(note) = Note::decode(&bytes) {
                let _ = format!("{note:?}");
            }
        }
    }
}
