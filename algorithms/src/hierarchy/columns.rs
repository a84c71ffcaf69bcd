//! The ranks by place, where nodes differ in size: which nodes have a place, and who stands in on those that do not.
//!
//! *Column* `t` is the `t`th place of all nodes that have one. On a node without, the place `t mod s` *holds* the column, of its `s`
//! ranks; what it has to give to the column or to get from it goes to or comes from a *helper*, a rank of the column. The nodes without are
//! dealt out to the helpers in turn.

use std::ops::Range;

use super::components::sizes;
use crate::topology::Grouping;
use crate::types::Rank;

/// The columns of a grouping.
pub(super) struct Columns {
    pub(super) grouping: Grouping,
    /// By column: the nodes that have it, and those that do not, both ascending.
    columns: Vec<(Vec<u32>, Vec<u32>)>,
    /// The most columns that a place holds besides its own.
    pub(super) more: u32,
}

/// A helper and those that it helps: the members of a component, the helper first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Help {
    /// The column.
    pub(super) column: u32,
    /// The helper, as its index among the nodes of the column.
    helper: u32,
    /// The rank's number among the members.
    pub(super) me: u32,
    /// How many members there are.
    pub(super) members: u32,
}

impl Columns {
    /// Of `grouping`.
    pub(super) fn new(grouping: &Grouping) -> Self {
        let (largest, smallest) = (sizes(grouping).max().unwrap_or(1), grouping.smallest());
        let column = |t| (0..grouping.nodes()).partition(|&node| grouping.size(node) > t);
        Self {
            grouping: grouping.clone(),
            columns: (0..largest).map(column).collect(),
            more: largest.div_ceil(smallest) - 1,
        }
    }

    /// How many there are: the size of the largest node.
    pub(super) fn count(&self) -> u32 {
        self.columns.len() as u32
    }

    /// How many ranks are in column `t`.
    pub(super) fn size(&self, t: u32) -> u32 {
        self.columns[t as usize].0.len() as u32
    }

    /// The rank that is `index` in column `t`.
    pub(super) fn rank(&self, t: u32, index: u32) -> Rank {
        let node = self.columns[t as usize].0[index as usize];
        self.grouping.ranks_of(node)[t as usize]
    }

    /// The number of `rank` in its column.
    pub(super) fn index(&self, rank: Rank) -> u32 {
        let nodes = &self.columns[self.grouping.local_rank(rank) as usize].0;
        nodes.partition_point(|&node| node < self.grouping.node(rank)) as u32
    }

    /// The columns that place `place` of a node of `size` ranks holds.
    fn held(&self, place: u32, size: u32) -> impl Iterator<Item = u32> {
        (place..self.count()).step_by(size as usize)
    }

    /// How many ranks are in the columns that place `place` of a node of `size` ranks holds.
    pub(super) fn weight(&self, place: u32, size: u32) -> u32 {
        self.held(place, size).map(|t| self.size(t)).sum()
    }

    /// The first of column `t`'s ranks among all those of the columns that its holder, on a node of `size` ranks, holds.
    pub(super) fn offset(&self, t: u32, size: u32) -> u32 {
        self.held(t % size, size).take_while(|&u| u < t).map(|u| self.size(u)).sum()
    }

    /// Rank number `index` of the columns that place `place` of a node of `size` ranks holds.
    pub(super) fn nth(&self, place: u32, size: u32, mut index: u32) -> Rank {
        for t in self.held(place, size) {
            match index.checked_sub(self.size(t)) {
                None => return self.rank(t, index),
                Some(left) => index = left,
            }
        }
        unreachable!("the index is below the weight")
    }

    /// Whom `rank` helps, if it is a helper.
    pub(super) fn helps(&self, rank: Rank) -> Option<Help> {
        let (column, helper) = (self.grouping.local_rank(rank), self.index(rank));
        let members = self.members(column, helper);
        (members > 1).then_some(Help { column, helper, me: 0, members })
    }

    /// The help that `rank` gets with the `i`th column that it holds besides its own, if there is one.
    pub(super) fn helped(&self, rank: Rank, i: u32) -> Option<Help> {
        let node = self.grouping.node(rank);
        let column = self.grouping.local_rank(rank) + (i + 1) * self.grouping.size(node);
        let (with, without) = self.columns.get(column as usize)?;
        let at = without.partition_point(|&other| other < node) as u32;
        let (helper, turn) = (at % with.len() as u32, at / with.len() as u32);
        Some(Help { column, helper, me: 1 + turn, members: self.members(column, helper) })
    }

    /// How many members a helper's group has, itself included.
    fn members(&self, column: u32, helper: u32) -> u32 {
        let (with, without) = &self.columns[column as usize];
        1 + (without.len() as u32).saturating_sub(helper).div_ceil(with.len() as u32)
    }

    /// The rank that is `member` of the helper's group.
    pub(super) fn member(&self, help: Help, member: u32) -> Rank {
        let (with, without) = &self.columns[help.column as usize];
        let Some(turn) = member.checked_sub(1) else { return self.rank(help.column, help.helper) };
        let node = without[(help.helper + turn * with.len() as u32) as usize];
        let holder = help.column % self.grouping.size(node);
        self.grouping.ranks_of(node)[holder as usize]
    }

    /// The sizes of all columns.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count()).map(|t| self.size(t))
    }

    /// The sizes of all helpers' groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = u32> + '_ {
        let helpers = move |t| (0..self.size(t)).map(move |helper| self.members(t, helper));
        (0..self.count()).flat_map(helpers).filter(|&members| members > 1)
    }

    /// The places of all nodes: node size and place.
    pub(super) fn places(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        sizes(&self.grouping).flat_map(|size| (0..size).map(move |place| (size, place)))
    }

    /// The slots of a rank for the columns that it holds besides its own, from `first`.
    pub(super) fn slots(&self, first: u32) -> Range<u32> {
        first..first + self.more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_every_column() {
        for grouping in [
            Grouping::of_sizes(&[4, 1, 3, 1, 1, 2]),
            Grouping::of_sizes(&[1, 7]),
            Grouping::of_sizes(&[2, 2, 2]),
            Grouping::new([0, 1, 0, 1, 2, 0, 2, 2, 2, 1, 3]),
        ] {
            let columns = Columns::new(&grouping);
            let mut got = vec![0; grouping.nodes() as usize];
            for rank in 0..grouping.nranks() {
                assert_eq!(columns.rank(grouping.local_rank(rank), columns.index(rank)), rank);
                let node = grouping.node(rank) as usize;
                got[node] += columns.size(grouping.local_rank(rank));
                if let Some(help) = columns.helps(rank) {
                    assert_eq!(columns.member(help, 0), rank);
                    for member in 1..help.members {
                        let other = columns.member(help, member);
                        let seen = (0..columns.more).filter_map(|i| columns.helped(other, i));
                        assert!(seen.clone().any(|h| h == Help { me: member, ..help }));
                    }
                }
                for help in (0..columns.more).filter_map(|i| columns.helped(rank, i)) {
                    assert_eq!(columns.member(help, help.me), rank);
                    let helper = columns.member(help, 0);
                    assert_eq!(columns.helps(helper), Some(Help { me: 0, ..help }));
                    got[node] += columns.size(help.column);
                }
            }
            assert!(got.iter().all(|&ranks| ranks == grouping.nranks()), "{grouping}: {got:?}");
        }
    }

    #[test]
    fn a_place_holds_its_columns_in_order() {
        let columns = Columns::new(&Grouping::of_sizes(&[5, 2, 3]));
        assert_eq!((columns.weight(0, 2), columns.weight(1, 2)), (6, 4));
        let held: Vec<_> = (0..6).map(|i| columns.nth(0, 2, i)).collect();
        assert_eq!(held, [0, 5, 7, 2, 9, 4]);
        assert_eq!((columns.offset(4, 2), columns.offset(3, 2), columns.offset(0, 2)), (5, 3, 0));
    }
}
