//! The grouping of ranks into nodes, which hierarchical schedules and the cost model use.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::types::Rank;

/// A partition of the ranks into nodes of any sizes, in any order. Nodes are numbered by their
/// lowest rank. The ranks of a node are numbered in ascending order; that number is the *local
/// rank*. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Grouping(Arc<NodeTable>);

#[derive(PartialEq, Eq, Hash)]
struct NodeTable {
    /// By rank its node and its local rank.
    positions: Vec<(u32, u32)>,
    /// The ranks, by node; those of node `i` are `ranks[first[i]..first[i + 1]]`.
    ranks: Vec<Rank>,
    first: Vec<u32>,
}

impl Grouping {
    /// The grouping in which ranks with equal labels share a node.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn new<L: Eq + std::hash::Hash>(labels: impl IntoIterator<Item = L>) -> Self {
        let mut numbers = HashMap::new();
        let mut nodes: Vec<Vec<Rank>> = Vec::new();
        let mut positions = Vec::new();
        for (rank, label) in (0..).zip(labels) {
            let node = *numbers.entry(label).or_insert(nodes.len());
            if node == nodes.len() {
                nodes.push(Vec::new());
            }
            positions.push((node as u32, nodes[node].len() as u32));
            nodes[node].push(rank);
        }
        assert!(!positions.is_empty(), "a grouping has at least one rank");
        let mut first = vec![0];
        first.extend(nodes.iter().scan(0, |sum, node| {
            *sum += node.len() as u32;
            Some(*sum)
        }));
        Self(Arc::new(NodeTable { positions, ranks: nodes.concat(), first }))
    }

    /// Nodes of these sizes, with consecutive ranks on each.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn of_sizes(sizes: &[u32]) -> Self {
        Self::new(
            (0..).zip(sizes).flat_map(|(node, &size)| (0..size).map(move |_: u32| node as u32)),
        )
    }

    /// All `nranks >= 1` ranks on one node.
    pub fn one_node(nranks: u32) -> Self {
        Self::of_sizes(&[nranks])
    }

    /// How many ranks there are.
    pub fn nranks(&self) -> u32 {
        self.0.positions.len() as u32
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> u32 {
        self.0.first.len() as u32 - 1
    }

    /// The node of `rank`.
    pub fn node(&self, rank: Rank) -> u32 {
        self.0.positions[rank as usize].0
    }

    /// The number of `rank` among the ranks of its node.
    pub fn local_rank(&self, rank: Rank) -> u32 {
        self.0.positions[rank as usize].1
    }

    /// The ranks of `node`, ascending.
    pub fn ranks_of(&self, node: u32) -> &[Rank] {
        let NodeTable { ranks, first, .. } = &*self.0;
        &ranks[first[node as usize] as usize..first[node as usize + 1] as usize]
    }

    /// How many ranks are on `node`.
    pub fn size(&self, node: u32) -> u32 {
        self.ranks_of(node).len() as u32
    }

    /// The number of ranks of the smallest node.
    pub fn smallest(&self) -> u32 {
        (0..self.nodes()).map(|node| self.size(node)).min().expect("there is a node")
    }

    /// Whether two ranks are on one node.
    pub fn same_node(&self, a: Rank, b: Rank) -> bool {
        self.node(a) == self.node(b)
    }
}

/// The sizes of the nodes where ranks are consecutive, else the ranks of each node: `4+4+2`,
/// `{0 2}{1 3}`.
impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.ranks.is_sorted() {
            let sizes: Vec<_> = (0..self.nodes()).map(|node| self.size(node).to_string()).collect();
            return f.pad(&sizes.join("+"));
        }
        for node in 0..self.nodes() {
            let ranks: Vec<_> = self.ranks_of(node).iter().map(Rank::to_string).collect();
            write!(f, "{{{}}}", ranks.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_come_in_any_order() {
        let grouping = Grouping::new(["b", "a", "b", "c", "a", "b"]);
        assert_eq!((grouping.nranks(), grouping.nodes(), grouping.smallest()), (6, 3, 1));
        assert_eq!(grouping.ranks_of(0), [0, 2, 5]);
        assert_eq!(grouping.ranks_of(1), [1, 4]);
        assert_eq!((grouping.node(4), grouping.local_rank(4)), (1, 1));
        assert_eq!(grouping.to_string(), "{0 2 5}{1 4}{3}");
        assert!(grouping.same_node(0, 5) && !grouping.same_node(0, 1));
    }

    #[test]
    fn sizes_give_consecutive_ranks() {
        let grouping = Grouping::of_sizes(&[4, 1, 3]);
        assert_eq!(grouping.ranks_of(2), [5, 6, 7]);
        assert_eq!(grouping.to_string(), "4+1+3");
        assert_eq!(Grouping::one_node(3), Grouping::of_sizes(&[3]));
    }
}
