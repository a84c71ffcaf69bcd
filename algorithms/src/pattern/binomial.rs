//! Binomial trees over tree nodes `0..n`; tree node 0 is the root.
//!
//! The parent of a tree node is its number without the lowest set bit. So the subtree of a tree
//! node whose lowest bit is `2^k` is the range of `2^k` numbers that begins with it, cut off at
//! `n`. A collective with a root counts its ranks from the root on, see [`node`] and [`rank`].

use crate::pattern::ring::{after, before};
use crate::types::Rank;

/// The tree node of `rank` in a tree whose root is rank `root`.
pub const fn node(rank: Rank, root: Rank, nranks: u32) -> u32 {
    before(rank, root, nranks)
}

/// The rank at tree node `node` in a tree whose root is rank `root`.
pub const fn rank(node: u32, root: Rank, nranks: u32) -> Rank {
    after(root, node, nranks)
}

/// The parent of a node other than 0.
pub const fn parent(node: u32) -> u32 {
    node & (node - 1)
}

/// The number of tree nodes in the subtree of `node`, itself included: a range that begins with
/// `node`.
pub const fn size(node: u32, nranks: u32) -> u32 {
    let rest = nranks - node;
    let full = node & node.wrapping_neg();
    if node == 0 || rest < full { rest } else { full }
}

/// How many children `node` has. Child `i` is `node + 2^i`.
pub const fn children(node: u32, nranks: u32) -> u32 {
    size(node, nranks).next_power_of_two().ilog2()
}

/// The child of `node` whose subtree contains `below`, another tree node in the subtree of `node`.
pub const fn toward(node: u32, below: u32) -> u32 {
    node + (1 << (below - node).ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_ranges_that_the_children_divide() {
        for nranks in 1..200 {
            for node in 0..nranks {
                let mut next = node + 1;
                for i in 0..children(node, nranks) {
                    let child = node + (1 << i);
                    assert_eq!((child, parent(child)), (next, node));
                    let end = child + size(child, nranks);
                    assert!((child..end).all(|below| toward(node, below) == child));
                    next = end;
                }
                assert_eq!(next, node + size(node, nranks));
            }
        }
    }

    #[test]
    fn depth_is_logarithmic() {
        for nranks in 2..200u32 {
            let depth = |node| {
                (0..nranks).try_fold(node, |n, i| if n == 0 { Err(i) } else { Ok(parent(n)) })
            };
            let deepest = (0..nranks).filter_map(|node| depth(node).err()).max();
            assert!(deepest <= Some((nranks - 1).ilog2() + 1), "{nranks}");
        }
    }
}
