//! A tree over aligned blocks of ranks that double in size, for any root: the canonical balanced
//! tree with one holder for every block.
//!
//! A block is `2^k` ranks that begin at a multiple of `2^k`, cut off at the number of ranks. Its
//! holder is the root if the block contains it, else the block's first rank. When two sibling
//! blocks merge, the holder that does not become the holder of the merged block sends what it has
//! to the other one; a block without a sibling has nothing to do. So the rank order is kept for
//! every root, and every rank except the root sends what it holds exactly once.

use crate::types::Rank;

/// A merge in which the holder of the sibling block sends what it has to the rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMerge {
    /// The sibling block's holder.
    pub source: Rank,
    /// The sibling block has the lower ranks, so its value is the left operand.
    pub source_is_lower: bool,
}

/// The holder of block number `block` of those of `2^k` ranks.
const fn holder(block: u32, k: u32, root: Rank) -> Rank {
    if root >> k == block { root } else { block << k }
}

/// Number of levels: `ceil(log2 nranks)`.
const fn levels(nranks: u32) -> u32 {
    nranks.next_power_of_two().ilog2()
}

/// The highest level at which `rank` is the holder of its block.
fn height(rank: Rank, root: Rank, nranks: u32) -> u32 {
    let holds = |&k: &u32| holder(rank >> k, k, root) == rank;
    (1..=levels(nranks)).take_while(holds).last().unwrap_or(0)
}

/// The merges in which `rank` receives, in order.
pub fn merges(rank: Rank, root: Rank, nranks: u32) -> impl Iterator<Item = BlockMerge> {
    (0..height(rank, root, nranks)).filter_map(move |k| {
        let block = rank >> k;
        let sibling = block ^ 1;
        let source = holder(sibling, k, root);
        let exists = sibling << k < nranks;
        exists.then_some(BlockMerge { source, source_is_lower: sibling < block })
    })
}

/// The rank to which `rank` sends what it holds in the end; None for the root.
pub fn receiver(rank: Rank, root: Rank, nranks: u32) -> Option<Rank> {
    let k = height(rank, root, nranks) + 1;
    (rank != root).then(|| holder(rank >> k, k, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_but_the_root_sends_once() {
        for nranks in 1..70 {
            for root in 0..nranks {
                let mut sends = vec![0; nranks as usize];
                for rank in 0..nranks {
                    for merge in merges(rank, root, nranks) {
                        sends[merge.source as usize] += 1;
                        assert_eq!(receiver(merge.source, root, nranks), Some(rank));
                        assert_eq!(merge.source_is_lower, merge.source < rank);
                    }
                }
                assert!((0..nranks).all(|r| sends[r as usize] == u32::from(r != root)));
            }
        }
    }

    #[test]
    fn a_root_in_the_middle_receives_from_both_sides() {
        let sources = |rank| merges(rank, 5, 11).map(|m| m.source).collect::<Vec<_>>();
        assert_eq!(sources(5), [4, 6, 0, 8]);
        assert_eq!(sources(6), [7]);
        assert_eq!(sources(0), [1, 2]);
        assert_eq!(sources(8), [9, 10]);
    }
}
