//! Columns: the ranks with the same local rank on all nodes, where nodes differ in size.
//!
//! *Column* `t` contains local rank `t` of every node that has one. A node of `s` ranks without a
//! local rank `t` is represented by its local rank `t mod s`, which *holds* the column there. What
//! this holder sends to the column or receives from it goes through a *helper*, a rank of the
//! column. The nodes that are not in the column are assigned to the helpers in turn.

use std::ops::Range;

use super::components::node_sizes;
use crate::topology::Grouping;
use crate::types::Rank;

/// The columns of a grouping.
pub(super) struct Columns {
    pub(super) grouping: Grouping,
    /// By column: the nodes that are in it, and those that are not, both ascending.
    columns: Vec<(Vec<u32>, Vec<u32>)>,
    /// The largest number of columns that a rank holds besides its own.
    pub(super) extra_columns: u32,
}

/// A helper and the holders that it helps: the members of a component, the helper first. One rank's
/// view of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HelpGroup {
    /// The column.
    pub(super) column: u32,
    /// The helper's index in the column.
    helper: u32,
    /// The rank's number among the members.
    pub(super) member: u32,
    /// How many members there are.
    pub(super) members: u32,
}

impl Columns {
    /// The columns of `grouping`.
    pub(super) fn new(grouping: &Grouping) -> Self {
        let (largest, smallest) = (node_sizes(grouping).max().unwrap_or(1), grouping.smallest());
        let column = |t| (0..grouping.nodes()).partition(|&node| grouping.size(node) > t);
        Self {
            grouping: grouping.clone(),
            columns: (0..largest).map(column).collect(),
            extra_columns: largest.div_ceil(smallest) - 1,
        }
    }

    /// How many columns there are: the size of the largest node.
    pub(super) fn count(&self) -> u32 {
        self.columns.len() as u32
    }

    /// How many ranks are in column `t`.
    pub(super) fn size(&self, t: u32) -> u32 {
        self.columns[t as usize].0.len() as u32
    }

    /// Rank number `index` of column `t`.
    pub(super) fn rank(&self, t: u32, index: u32) -> Rank {
        let node = self.columns[t as usize].0[index as usize];
        self.grouping.ranks_of(node)[t as usize]
    }

    /// The number of `rank` in its column.
    pub(super) fn index(&self, rank: Rank) -> u32 {
        let nodes = &self.columns[self.grouping.local_rank(rank) as usize].0;
        nodes.partition_point(|&node| node < self.grouping.node(rank)) as u32
    }

    /// The columns that local rank `local` of a node of `size` ranks holds.
    fn held(&self, local: u32, size: u32) -> impl Iterator<Item = u32> {
        (local..self.count()).step_by(size as usize)
    }

    /// How many ranks are in the columns that local rank `local` of a node of `size` ranks holds.
    pub(super) fn held_ranks(&self, local: u32, size: u32) -> u32 {
        self.held(local, size).map(|t| self.size(t)).sum()
    }

    /// The position of column `t` among the ranks of all columns that its holder, on a node of
    /// `size` ranks, holds.
    pub(super) fn offset(&self, t: u32, size: u32) -> u32 {
        self.held(t % size, size).take_while(|&u| u < t).map(|u| self.size(u)).sum()
    }

    /// Rank number `index` of the columns that local rank `local` of a node of `size` ranks holds.
    pub(super) fn held_rank(&self, local: u32, size: u32, mut index: u32) -> Rank {
        for t in self.held(local, size) {
            match index.checked_sub(self.size(t)) {
                None => return self.rank(t, index),
                Some(left) => index = left,
            }
        }
        unreachable!("the index is below the number of held ranks")
    }

    /// The group in which `rank` is the helper, if it is one.
    pub(super) fn helper_group(&self, rank: Rank) -> Option<HelpGroup> {
        let (column, helper) = (self.grouping.local_rank(rank), self.index(rank));
        let members = self.members(column, helper);
        (members > 1).then_some(HelpGroup { column, helper, member: 0, members })
    }

    /// The group in which `rank` is helped with column number `i` of those that it holds besides
    /// its own, if there is one.
    pub(super) fn helped_group(&self, rank: Rank, i: u32) -> Option<HelpGroup> {
        let node = self.grouping.node(rank);
        let column = self.grouping.local_rank(rank) + (i + 1) * self.grouping.size(node);
        let (with, without) = self.columns.get(column as usize)?;
        let at = without.partition_point(|&other| other < node) as u32;
        let (helper, turn) = (at % with.len() as u32, at / with.len() as u32);
        Some(HelpGroup { column, helper, member: 1 + turn, members: self.members(column, helper) })
    }

    /// How many members a helper's group has, itself included.
    fn members(&self, column: u32, helper: u32) -> u32 {
        let (with, without) = &self.columns[column as usize];
        1 + (without.len() as u32).saturating_sub(helper).div_ceil(with.len() as u32)
    }

    /// The rank that is `member` of the helper's group.
    pub(super) fn member(&self, help: HelpGroup, member: u32) -> Rank {
        let (with, without) = &self.columns[help.column as usize];
        let Some(turn) = member.checked_sub(1) else { return self.rank(help.column, help.helper) };
        let node = without[(help.helper + turn * with.len() as u32) as usize];
        let holder = help.column % self.grouping.size(node);
        self.grouping.ranks_of(node)[holder as usize]
    }

    /// The sizes of all columns.
    pub(super) fn column_sizes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count()).map(|t| self.size(t))
    }

    /// The sizes of all helper groups.
    pub(super) fn helper_group_sizes(&self) -> impl Iterator<Item = u32> + '_ {
        let helpers = move |t| (0..self.size(t)).map(move |helper| self.members(t, helper));
        (0..self.count()).flat_map(helpers).filter(|&members| members > 1)
    }

    /// For all ranks the size of the node and the local rank.
    pub(super) fn sizes_and_local_ranks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        node_sizes(&self.grouping).flat_map(|size| (0..size).map(move |local| (size, local)))
    }

    /// The slots of a rank, from `first` on, for the columns that it holds besides its own.
    pub(super) fn extra_slots(&self, first: u32) -> Range<u32> {
        first..first + self.extra_columns
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
                if let Some(help) = columns.helper_group(rank) {
                    assert_eq!(columns.member(help, 0), rank);
                    for member in 1..help.members {
                        let other = columns.member(help, member);
                        let seen = (0..columns.extra_columns)
                            .filter_map(|i| columns.helped_group(other, i));
                        assert!(seen.clone().any(|h| h == HelpGroup { member, ..help }));
                    }
                }
                for help in (0..columns.extra_columns).filter_map(|i| columns.helped_group(rank, i))
                {
                    assert_eq!(columns.member(help, help.member), rank);
                    let helper = columns.member(help, 0);
                    assert_eq!(columns.helper_group(helper), Some(HelpGroup { member: 0, ..help }));
                    got[node] += columns.size(help.column);
                }
            }
            assert!(got.iter().all(|&ranks| ranks == grouping.nranks()), "{grouping}: {got:?}");
        }
    }

    #[test]
    fn a_local_rank_holds_its_columns_in_order() {
        let columns = Columns::new(&Grouping::of_sizes(&[5, 2, 3]));
        assert_eq!((columns.held_ranks(0, 2), columns.held_ranks(1, 2)), (6, 4));
        let held: Vec<_> = (0..6).map(|i| columns.held_rank(0, 2, i)).collect();
        assert_eq!(held, [0, 5, 7, 2, 9, 4]);
        assert_eq!((columns.offset(4, 2), columns.offset(3, 2), columns.offset(0, 2)), (5, 3, 0));
    }
}
