//! Verdicts: proven failures, each of which ends the communicator on all ranks with the same error.

use std::time::Duration;

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;

use crate::bootstrap::BootstrapError;
use crate::control::flight_recorder::RecorderSnapshot;
use crate::error::Error;

/// Why a communicator has ended. On each rank the first verdict that reaches it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The process of a rank ended.
    Dead { rank: Rank },
    /// A rank left while another waited for it.
    Left { rank: Rank },
    /// Two ranks make different calls.
    Mismatch { ranks: [Rank; 2], what: String },
    /// A rank waited longer than the user allows.
    Timeout { rank: Rank, peer: Rank, what: String, waited: Duration },
    /// The user of a rank aborted.
    Aborted { by: Rank },
    /// The user of a rank revoked the communicator.
    Revoked { by: Rank },
    /// A rank cannot go on.
    Failed { rank: Rank, why: String },
}

impl Verdict {
    /// The error that every call returns from now on.
    pub(crate) fn error(&self) -> Error {
        match self.clone() {
            Self::Dead { rank } => LinkError::PeerDied { peer: rank }.into(),
            Self::Left { rank } => LinkError::PeerLeft { peer: rank }.into(),
            Self::Mismatch { ranks, what } => Error::Mismatch { ranks, what },
            Self::Timeout { rank, peer, what, waited } => {
                Error::Timeout { rank, peer, what, waited }
            }
            Self::Aborted { by } => Error::Aborted { by },
            Self::Revoked { by } => Error::Revoked { by },
            Self::Failed { rank, why } => BootstrapError::PeerFailed { rank, why }.into(),
        }
    }

    /// The verdict that a rank that fails with `error` sends to the others.
    pub(crate) fn of(rank: Rank, error: &Error) -> Self {
        match error.clone() {
            Error::Link(LinkError::PeerDied { peer }) => Self::Dead { rank: peer },
            Error::Link(LinkError::PeerLeft { peer }) => Self::Left { rank: peer },
            Error::Mismatch { ranks, what } => Self::Mismatch { ranks, what },
            Error::Timeout { rank, peer, what, waited } => {
                Self::Timeout { rank, peer, what, waited }
            }
            Error::Aborted { by } => Self::Aborted { by },
            Error::Revoked { by } => Self::Revoked { by },
            Error::Bootstrap(BootstrapError::PeerLost { rank, .. }) => Self::Dead { rank },
            Error::Bootstrap(BootstrapError::PeerFailed { rank, why }) => {
                Self::Failed { rank, why }
            }
            other => Self::Failed { rank, why: other.to_string() },
        }
    }

    /// The verdict that ranks `a` and `b` make different calls, if their recorded calls prove it.
    pub(crate) fn compare(
        a: (Rank, &RecorderSnapshot),
        b: (Rank, &RecorderSnapshot),
    ) -> Option<Self> {
        let mut ranks = [a, b];
        // Sorted, so that both ranks of the pair come to the same verdict.
        ranks.sort_by_key(|rank| rank.0);
        let [(first, first_calls), (second, second_calls)] = ranks;
        let difference = first_calls.calls.iter().find_map(|mine| {
            let other = second_calls.call(mine.sequence)?;
            (other != mine.signature).then_some((mine.sequence, mine.signature, other))
        });
        let (sequence, mine, other) = difference?;
        let what = format!("in call {sequence} rank {first} calls {mine}, rank {second} {other}");
        Some(Self::Mismatch { ranks: [first, second], what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call_signature::CallSignature;
    use crate::control::flight_recorder::RecordedCall;

    fn snapshot(first: u64, counts: &[u64]) -> RecorderSnapshot {
        let call = |(i, &count): (usize, &u64)| RecordedCall {
            sequence: first + i as u64,
            signature: CallSignature { what: 7 << 8, count },
            took: None,
        };
        let calls: Vec<_> = counts.iter().enumerate().map(call).collect();
        RecorderSnapshot {
            sequence: first + calls.len() as u64 - 1,
            calls,
            ..RecorderSnapshot::default()
        }
    }

    #[test]
    fn only_different_calls_of_the_same_number_are_proof() {
        let ours = snapshot(5, &[1, 2, 3]);
        let compare = |theirs: &RecorderSnapshot| Verdict::compare((4, &ours), (1, theirs));
        assert_eq!(compare(&snapshot(5, &[1, 2, 3, 4])), None);
        assert_eq!(compare(&snapshot(1, &[9, 9])), None);
        assert_eq!(compare(&RecorderSnapshot::default()), None);
        let Some(Verdict::Mismatch { ranks, what }) = compare(&snapshot(6, &[2, 9])) else {
            panic!("no mismatch");
        };
        assert_eq!(ranks, [1, 4]);
        assert!(what.starts_with("in call 7 rank 1 calls all_reduce of 9"), "{what}");
    }
}
