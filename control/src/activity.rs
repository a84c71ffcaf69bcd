//! What a rank does: its last calls, as its flight recorder holds them, and as it answers when
//! another rank asks.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::call_signature::CallSignature;
use crate::codec::{ByteReader, put_text};

/// Most calls that a flight recorder keeps, a power of two.
pub const MOST_CALLS: u64 = 64;
/// Stands for no rank.
const NO_RANK: u32 = u32::MAX;

/// A call of a [`RecorderSnapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedCall {
    /// The number of the call. Calls are numbered from 1.
    pub sequence: u64,
    /// The call.
    pub signature: CallSignature,
    /// The hash of all calls before it.
    pub history: u64,
    /// For a call that has ended and had a long wait: the time from its first long wait to its end.
    pub took: Option<Duration>,
}

/// What a flight recorder held at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecorderSnapshot {
    /// The number of the current or last call; 0 before the first.
    pub sequence: u64,
    /// Whether that call has not ended.
    pub in_call: bool,
    /// The rank that the call waits for.
    pub waits_for: Option<Rank>,
    /// The last calls, oldest first.
    pub calls: Vec<RecordedCall>,
}

/// The number of calls that a rank has made, and the hash of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryPoint {
    /// The number of the last call.
    pub sequence: u64,
    /// The hash of all calls up to it.
    pub hash: u64,
}

/// What a rank is doing, as it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// What its flight recorder holds.
    pub snapshot: RecorderSnapshot,
    /// The call of another communicator in which its thread is, if it is in no call of this one.
    pub elsewhere: Option<String>,
}

impl RecorderSnapshot {
    /// The signature of call `sequence`, if it is kept.
    pub fn call(&self, sequence: u64) -> Option<CallSignature> {
        self.recorded(sequence).map(|call| call.signature)
    }

    /// The hash of all calls up to `sequence`, if that call is kept.
    pub fn history(&self, sequence: u64) -> Option<u64> {
        if sequence == 0 {
            return Some(0);
        }
        self.recorded(sequence).map(|call| call.signature.extend(call.history))
    }

    /// The last call, and the hash of all calls. None if calls were made and none is kept.
    pub fn last_point(&self) -> Option<HistoryPoint> {
        let hash = self.history(self.sequence)?;
        Some(HistoryPoint { sequence: self.sequence, hash })
    }

    /// The current or last call, in words.
    pub fn last(&self) -> String {
        self.describe(self.sequence)
    }

    /// Call `sequence`, in words.
    pub fn describe(&self, sequence: u64) -> String {
        match self.call(sequence) {
            Some(call) => format!("call {sequence}, {call}"),
            None if sequence == 0 => String::from("no call yet"),
            None => format!("call {sequence}"),
        }
    }

    fn recorded(&self, sequence: u64) -> Option<&RecordedCall> {
        self.calls.iter().find(|call| call.sequence == sequence)
    }
}

impl HistoryPoint {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.hash.to_le_bytes());
    }

    pub(crate) fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
        Some(Self { sequence: reader.u64()?, hash: reader.u64()? })
    }
}

impl Activity {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Self { snapshot, elsewhere } = self;
        let RecorderSnapshot { sequence, in_call, waits_for, calls } = snapshot;
        out.extend(sequence.to_le_bytes());
        out.push(u8::from(*in_call));
        out.extend(waits_for.unwrap_or(NO_RANK).to_le_bytes());
        out.push(calls.len() as u8);
        for RecordedCall { sequence, signature, history, took: _ } in calls {
            for word in [*sequence, signature.what, signature.count, *history] {
                out.extend(word.to_le_bytes());
            }
        }
        put_text(out, elsewhere.as_deref().unwrap_or(""));
    }

    pub(crate) fn decode(reader: &mut ByteReader<'_>) -> Option<Self> {
        let sequence = reader.u64()?;
        let in_call = reader.u8()? != 0;
        let waits_for = Some(reader.u32()?).filter(|&rank| rank != NO_RANK);
        let count = u64::from(reader.u8()?);
        if count > MOST_CALLS {
            return None;
        }
        let mut calls = Vec::new();
        for _ in 0..count {
            let sequence = reader.u64()?;
            let signature = CallSignature { what: reader.u64()?, count: reader.u64()? };
            calls.push(RecordedCall { sequence, signature, history: reader.u64()?, took: None });
        }
        let elsewhere = Some(reader.text()?).filter(|text| !text.is_empty());
        Some(Self { snapshot: RecorderSnapshot { sequence, in_call, waits_for, calls }, elsewhere })
    }
}
