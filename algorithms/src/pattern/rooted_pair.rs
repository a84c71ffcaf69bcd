//! Two binary trees with the same root over tree nodes `0..n`, such that only the root is an inner
//! node of both.
//!
//! Tree node 0 is the root and has one child. The tree nodes `1..n` form a binary tree in order, in
//! which odd ones are leaves. In the second tree their numbers change parity: they are mirrored if
//! `n` is odd, and moved up by one (the last to the position of the first) if it is even. So for
//! the two halves of a vector, one in each tree, every rank except the root is an inner node at
//! most once, and all send and receive about as much. Source: P. Sanders, J. Speck, J. L. Träff,
//! "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 35
//! (2009).

use crate::pattern::tree::{TreeNeighbours, in_order};

/// The neighbours of `node` in tree 0 or tree 1 of the pair.
pub fn tree(tree: u32, node: u32, nranks: u32) -> TreeNeighbours {
    if tree == 0 || node == 0 && nranks < 3 {
        return in_order(node, nranks);
    }
    // From a node to its position in the in-order tree, and back.
    let odd = !nranks.is_multiple_of(2);
    let to = |node: u32| match node {
        0 => 0,
        _ if odd => nranks - node,
        1 => nranks - 1,
        _ => node - 1,
    };
    let from = |place: u32| match place {
        0 => 0,
        _ if odd => nranks - place,
        _ if place == nranks - 1 => 1,
        _ => place + 1,
    };
    let TreeNeighbours { parent, children } = in_order(to(node), nranks);
    TreeNeighbours { parent: parent.map(from), children: children.map(|c| c.map(from)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_trees_of_logarithmic_depth() {
        for nranks in 1..300u32 {
            for which in 0..2 {
                for node in 0..nranks {
                    let TreeNeighbours { parent, children } = tree(which, node, nranks);
                    assert_eq!(parent.is_none(), node == 0);
                    if let Some(parent) = parent {
                        assert!(tree(which, parent, nranks).children.contains(&Some(node)));
                    }
                    for child in children.into_iter().flatten() {
                        assert_eq!(tree(which, child, nranks).parent, Some(node));
                    }
                    let up = |&n: &u32| tree(which, n, nranks).parent;
                    let depth = std::iter::successors(Some(node), up).take(99).count() as u32 - 1;
                    assert!(depth <= nranks.next_power_of_two().ilog2(), "{nranks} {node}");
                }
            }
        }
    }

    #[test]
    fn only_the_root_is_an_inner_node_of_both_trees() {
        for nranks in 2..300 {
            let inner = |which, n| tree(which, n, nranks).children.iter().any(Option::is_some);
            assert!((1..nranks).all(|n| !(inner(0, n) && inner(1, n))), "{nranks}");
        }
    }
}
