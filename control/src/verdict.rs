//! Verdicts: proven failures, each of which ends the communicator on all ranks with the same error.

use std::time::Duration;

use maypole_algorithms::Rank;

use crate::activity::RecorderSnapshot;
use crate::rank_set::RankSet;

/// Why a communicator, or the attempt to make one, has ended. On each rank the first verdict that
/// reaches it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process of a rank ended.
    Dead {
        /// The rank.
        rank: Rank,
        /// The rank that noticed it.
        seen_by: Rank,
    },
    /// A rank left while another waited for it.
    Left {
        /// The rank that left.
        rank: Rank,
    },
    /// A rank left, and what it had sent could not reach other ranks in the time that it allowed.
    LeftUnsent {
        /// The rank that left.
        rank: Rank,
        /// The ranks that have not received everything.
        peers: RankSet,
        /// The number of lost messages.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Two ranks make different calls.
    Mismatch {
        /// The two ranks.
        ranks: [Rank; 2],
        /// Both calls, in words.
        what: String,
    },
    /// A rank waited longer than the user allows.
    Timeout {
        /// The rank that waited.
        rank: Rank,
        /// The rank that it waited for.
        peer: Rank,
        /// What it waited in, or what `peer` did not do.
        what: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The user of a rank aborted.
    Aborted {
        /// The rank.
        by: Rank,
    },
    /// The user of a rank revoked the communicator, of which others are to be made.
    Revoked {
        /// The rank.
        by: Rank,
    },
    /// A rank cannot go on.
    Failed {
        /// The rank.
        rank: Rank,
        /// The text of its error.
        why: String,
    },
    /// Ranks did not join in time.
    MissingRanks {
        /// The ranks.
        ranks: RankSet,
        /// The number of ranks of the communicator.
        nranks: u32,
        /// The time since the first rank came.
        waited: Duration,
    },
    /// Two processes joined with the same rank. Told to the second.
    DuplicateRank {
        /// The rank.
        rank: Rank,
        /// The host of the process that came first.
        host: String,
        /// The number of the process that came first.
        pid: u32,
    },
    /// A rank gave another number of ranks than those before it. Told to that rank.
    DifferentRankCount {
        /// The rank.
        rank: Rank,
        /// The number that it gave.
        ours: u32,
        /// The number that the ranks before it gave.
        theirs: u32,
    },
    /// Ranks did not do the same.
    Disagreement {
        /// The subject.
        what: String,
        /// The ranks that differ from the others.
        ranks: RankSet,
    },
}

impl Verdict {
    /// The verdict that ranks `a` and `b` make different calls, if their recorded calls prove it.
    pub fn compare(a: (Rank, &RecorderSnapshot), b: (Rank, &RecorderSnapshot)) -> Option<Self> {
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
    use crate::activity::RecordedCall;
    use crate::call_signature::CallSignature;

    fn snapshot(first: u64, counts: &[u64]) -> RecorderSnapshot {
        let call = |(i, &count): (usize, &u64)| RecordedCall {
            sequence: first + i as u64,
            signature: CallSignature { what: 7 << 8, count },
            history: 0,
            took: None,
        };
        let calls: Vec<_> = counts.iter().enumerate().map(call).collect();
        let sequence = first + calls.len() as u64 - 1;
        RecorderSnapshot { sequence, calls, ..RecorderSnapshot::default() }
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
