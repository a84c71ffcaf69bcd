//! Binary trees over ranks, numbered in order (left subtree < rank < right subtree).
//!
//! The position of a rank follows from its lowest set bit: odd ranks are leaves, a rank whose
//! lowest bit is `2^k` has height `k`, and rank 0 is the root with one child. In two such trees, of
//! which the second is mirrored (even rank counts) or shifted by one (odd), a rank is an inner node
//! of at most one, so that both together use every rank's send and receive bandwidth. Source: P.
//! Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and
//! scan", Parallel Computing 35 (2009).

use crate::types::Rank;

/// The neighbours of a rank in a binary tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeNeighbours {
    /// The parent; None for the root.
    pub parent: Option<Rank>,
    /// The child whose subtree has the lower ranks, and the child whose subtree has the higher
    /// ranks; in a mirrored tree the reverse.
    pub children: [Option<Rank>; 2],
}

/// The neighbours of `rank` in the in-order binary tree over `nranks` ranks; rank 0 is the root.
pub fn in_order(rank: Rank, nranks: u32) -> TreeNeighbours {
    if rank == 0 {
        let top = nranks.next_power_of_two() / 2;
        let child = (nranks > 1).then_some(top);
        return TreeNeighbours { parent: None, children: [None, child] };
    }
    let bit = 1 << rank.trailing_zeros();
    let above = (rank ^ bit) | (bit << 1);
    let parent = if above < nranks { above } else { rank ^ bit };
    let low = (bit > 1).then_some(rank - bit / 2);
    // The right subtree's root is the highest aligned rank that exists.
    let high = (0..rank.trailing_zeros()).rev().map(|k| rank + (1 << k)).find(|&c| c < nranks);
    TreeNeighbours { parent: Some(parent), children: [low, high] }
}

/// The neighbours of `rank` in tree 0 or tree 1 of the pair that the module documentation
/// describes.
pub fn double(tree: u32, rank: Rank, nranks: u32) -> TreeNeighbours {
    if tree == 0 {
        return in_order(rank, nranks);
    }
    // A mirror image or a rotation of the ranks, and its inverse.
    let even = nranks.is_multiple_of(2);
    let to = |r: Rank| if even { nranks - 1 - r } else { (r + nranks - 1) % nranks };
    let from = |r: Rank| if even { nranks - 1 - r } else { (r + 1) % nranks };
    let node = in_order(to(rank), nranks);
    TreeNeighbours { parent: node.parent.map(from), children: node.children.map(|c| c.map(from)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_children_agree_and_depth_is_logarithmic() {
        for nranks in 1..300 {
            for tree in 0..2 {
                let node = |r| double(tree, r, nranks);
                let mut roots = 0;
                for rank in 0..nranks {
                    roots += u32::from(node(rank).parent.is_none());
                    for child in node(rank).children.into_iter().flatten() {
                        assert_eq!(node(child).parent, Some(rank));
                    }
                    let path = std::iter::successors(Some(rank), |&r| node(r).parent);
                    let depth = path.take(nranks as usize + 1).count() as u32;
                    assert!(depth <= nranks.next_power_of_two().ilog2() + 1, "{nranks} {rank}");
                    if let Some(parent) = node(rank).parent {
                        assert!(node(parent).children.contains(&Some(rank)));
                    }
                }
                assert_eq!(roots, 1);
            }
        }
    }

    #[test]
    fn at_most_one_rank_is_an_inner_node_of_both_trees() {
        for nranks in 2..200 {
            let inner = |tree, r| double(tree, r, nranks).children.iter().flatten().count() > 0;
            let twice = (0..nranks).filter(|&r| inner(0, r) && inner(1, r)).count();
            assert!(twice <= 1, "{nranks}: {twice}");
        }
    }
}
