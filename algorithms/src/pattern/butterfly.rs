//! Aligned blocks of ranks that double in size: the canonical balanced tree as an exchange pattern,
//! for any rank count.
//!
//! In round `k` the rank's block of `2^k` aligned ranks meets its sibling block. Where the rank
//! count is no power of two, the last block may be cut short or missing: a missing sibling means an
//! idle round; members of a short block serve several receivers each, so that no rank waits for
//! more than one message a round.

use crate::types::Rank;

/// What `rank` does in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The rank of the sibling block that it hears from.
    pub source: Rank,
    /// The first of the ranks that hear from it, if any does.
    first: Rank,
    /// Distance between two of them.
    stride: u32,
    /// How many hear from it.
    pub targets: u32,
    /// The sibling block lies below the own one: its value is the left operand.
    pub sibling_is_lower: bool,
}

impl Round {
    /// The `i`th rank that hears from this one, `i < targets`.
    pub const fn target(&self, i: u32) -> Rank {
        self.first + i * self.stride
    }
}

/// Number of rounds: `ceil(log2 nranks)`.
pub const fn rounds(nranks: u32) -> u32 {
    nranks.next_power_of_two().ilog2()
}

/// Round `k` of `rank`, or None where its block has no sibling. The last round is never idle.
pub fn round(k: u32, rank: Rank, nranks: u32) -> Option<Round> {
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
    Some(Round {
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
