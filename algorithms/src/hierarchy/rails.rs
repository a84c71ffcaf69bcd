//! Which ranks carry which piece of the vector between the nodes, where one rank is the root.

use std::ops::Range;

use crate::topology::Grouping;
use crate::types::Rank;

/// Rail `j` is the `j`th place of every node, except on the root's node where the root is no such place: there it is rail 0.
#[derive(Clone)]
pub(super) struct Rails {
    pub(super) grouping: Grouping,
    /// How many there are: at least one, at most as many as the smallest node has ranks.
    pub(super) rails: u32,
    pub(super) root: Rank,
}

impl Rails {
    /// The root's node.
    pub(super) fn home(&self) -> u32 {
        self.grouping.node(self.root)
    }

    /// The rail that the root is on.
    pub(super) fn root_rail(&self) -> u32 {
        let place = self.grouping.local_rank(self.root);
        if place < self.rails { place } else { 0 }
    }

    /// The place that carries rail `rail` on `node`.
    pub(super) fn place(&self, node: u32, rail: u32) -> u32 {
        let on_root = node == self.home() && rail == self.root_rail();
        if on_root { self.grouping.local_rank(self.root) } else { rail }
    }

    /// The rank that carries rail `rail` on `node`.
    pub(super) fn carrier(&self, node: u32, rail: u32) -> Rank {
        self.grouping.ranks_of(node)[self.place(node, rail) as usize]
    }

    /// The rail that `rank` carries, if it does.
    pub(super) fn rail(&self, rank: Rank) -> Option<u32> {
        if rank == self.root {
            return Some(self.root_rail());
        }
        let place = self.grouping.local_rank(rank);
        let carries = place < self.rails && self.carrier(self.grouping.node(rank), place) == rank;
        carries.then_some(place)
    }

    /// The sizes of the nodes, each with the places of its carriers.
    pub(super) fn seats(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let nodes: Range<u32> = 0..self.grouping.nodes();
        nodes.flat_map(move |node| {
            let size = self.grouping.size(node);
            (0..self.rails).map(move |rail| (size, self.place(node, rail)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_are_distinct_and_the_root_is_one() {
        let grouping = Grouping::new([0, 1, 0, 1, 2, 0, 2, 2, 2, 1]);
        for (rails, root) in (1..=3).flat_map(|rails| (0..10).map(move |root| (rails, root))) {
            let rails = Rails { grouping: grouping.clone(), rails, root };
            assert_eq!(rails.carrier(rails.home(), rails.root_rail()), root);
            let mut carriers = 0;
            for rank in 0..10 {
                let Some(rail) = rails.rail(rank) else { continue };
                assert_eq!(rails.carrier(grouping.node(rank), rail), rank);
                carriers += 1;
            }
            assert_eq!(carriers, rails.rails * grouping.nodes());
        }
    }
}
