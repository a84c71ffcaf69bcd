//! The ranks that exchange with other nodes, where one rank is the root of the collective.

use std::ops::Range;

use crate::topology::Grouping;
use crate::types::Rank;

/// The rails of a grouping. Rail `j` is local rank `j` of every node, except on the root's node: if
/// the root is none of those local ranks there, it takes rail 0 itself.
#[derive(Clone)]
pub(super) struct Rails {
    pub(super) grouping: Grouping,
    /// How many rails there are: at least one, at most as many as the smallest node has ranks.
    pub(super) count: u32,
    pub(super) root: Rank,
}

impl Rails {
    /// `count` rails; None if there cannot be so many.
    pub(super) fn new(grouping: &Grouping, count: u32, root: Rank) -> Option<Self> {
        let fits = (1..=grouping.smallest()).contains(&count);
        fits.then(|| Self { grouping: grouping.clone(), count, root })
    }

    /// The root's node.
    pub(super) fn root_node(&self) -> u32 {
        self.grouping.node(self.root)
    }

    /// The rail of the root.
    pub(super) fn root_rail(&self) -> u32 {
        let local = self.grouping.local_rank(self.root);
        if local < self.count { local } else { 0 }
    }

    /// The local rank that carries rail `rail` on `node`.
    pub(super) fn local_carrier(&self, node: u32, rail: u32) -> u32 {
        let is_root = node == self.root_node() && rail == self.root_rail();
        if is_root { self.grouping.local_rank(self.root) } else { rail }
    }

    /// The rank that carries rail `rail` on `node`.
    pub(super) fn carrier(&self, node: u32, rail: u32) -> Rank {
        self.grouping.ranks_of(node)[self.local_carrier(node, rail) as usize]
    }

    /// The rail that `rank` carries; None if it carries none.
    pub(super) fn rail_of(&self, rank: Rank) -> Option<u32> {
        if rank == self.root {
            return Some(self.root_rail());
        }
        let local = self.grouping.local_rank(rank);
        let carries = local < self.count && self.carrier(self.grouping.node(rank), local) == rank;
        carries.then_some(local)
    }

    /// The size of every node with the local rank of each of its carriers.
    pub(super) fn sizes_and_carriers(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let nodes: Range<u32> = 0..self.grouping.nodes();
        nodes.flat_map(move |node| {
            let size = self.grouping.size(node);
            (0..self.count).map(move |rail| (size, self.local_carrier(node, rail)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_are_distinct_and_the_root_is_one() {
        let grouping = Grouping::new([0, 1, 0, 1, 2, 0, 2, 2, 2, 1]);
        for (count, root) in (1..=3).flat_map(|count| (0..10).map(move |root| (count, root))) {
            let rails = Rails::new(&grouping, count, root).expect("every node has three ranks");
            assert_eq!(rails.carrier(rails.root_node(), rails.root_rail()), root);
            let mut carriers = 0;
            for rank in 0..10 {
                let Some(rail) = rails.rail_of(rank) else { continue };
                assert_eq!(rails.carrier(grouping.node(rank), rail), rank);
                carriers += 1;
            }
            assert_eq!(carriers, rails.count * grouping.nodes());
        }
    }
}
