//! Aligned blocks of ranks that double in size: the canonical balanced tree as an exchange pattern,
//! for any rank count.
//!
//! In round `k` the rank's block of `2^k` aligned ranks exchanges with its sibling block. If the
//! rank count is not a power of two, the last block may be short or missing. Without a sibling
//! block the round is idle; a member of a short block sends to several ranks, so that no rank waits
//! for more than one message per round.

use crate::types::Rank;

/// What a rank does in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ButterflyRound {
    /// The rank of the sibling block from which it receives.
    pub source: Rank,
    /// The first of the ranks to which it sends.
    first: Rank,
    /// The distance between two of them.
    stride: u32,
    /// The number of ranks to which it sends.
    pub targets: u32,
    /// The sibling block has the lower ranks, so its value is the left operand.
    pub sibling_is_lower: bool,
}

impl ButterflyRound {
    /// Rank number `i < targets` of those to which it sends.
    pub const fn target(&self, i: u32) -> Rank {
        self.first + i * self.stride
    }
}

/// The number of rounds: `ceil(log2 nranks)`.
pub const fn rounds(nranks: u32) -> u32 {
    nranks.next_power_of_two().ilog2()
}

/// Round `k` of `rank`, or None where its block has no sibling. The last round is never idle.
pub fn round(k: u32, rank: Rank, nranks: u32) -> Option<ButterflyRound> {
    let size = 1u32 << k;
    let block = rank & !(size - 1);
    let sibling = block ^ size;
    if sibling >= nranks {
        return None;
    }
    let members = size.min(nranks - block);
    let siblings = size.min(nranks - sibling);
    let place = rank - block;
    let targets = if place < siblings { (siblings - place).div_ceil(members) } else { 0 };
    Some(ButterflyRound {
        source: sibling + place % siblings,
        first: sibling + place,
        stride: members,
        targets,
        sibling_is_lower: sibling < block,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_targets_agree() {
        for nranks in 1..150 {
            for k in 0..rounds(nranks) {
                for rank in 0..nranks {
                    let Some(r) = round(k, rank, nranks) else { continue };
                    let back = round(k, r.source, nranks).expect("siblings meet");
                    assert!((0..back.targets).any(|i| back.target(i) == rank));
                    for target in (0..r.targets).map(|i| r.target(i)) {
                        assert_eq!(round(k, target, nranks).map(|t| t.source), Some(rank));
                    }
                }
            }
            assert!(
                nranks == 1 || (0..nranks).all(|r| round(rounds(nranks) - 1, r, nranks).is_some())
            );
        }
    }
}
