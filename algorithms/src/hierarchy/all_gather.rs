//! All-gather: between the nodes on every column, then within each node.
//!
//! Column `t` is local rank `t` of every node that has one (`columns.rs` says what happens
//! elsewhere).
//!
//! * phase 1: in each column, an all-gather of the ranks' blocks
//! * phase 2, where nodes differ in size: the ranks of a column send its blocks to the nodes that
//!   are not in it, one rank to each node
//! * phase 3: in each node, all-gathers of what its ranks have, one for each node. Where nodes
//!   differ in size, or there is no such component, a broadcast from each rank of the columns that
//!   it holds.
//!
//! * bytes into a node: each block of the others once, which is the minimum; out of a rank, with
//!   equal nodes: `(N-1) m` for blocks of `m`
//! * cost, with equal nodes: `T_all_gather(N, m) + N T_all_gather(s, m)`; the second term is the
//!   speed within a node
//! * scratch: that of the components, nothing between them
//! * channels: `c_3` within a node, with broadcasts `s` times that for the largest node of `s`;
//!   between nodes the larger of `c_1` and 1
//! * class: canonical (nothing is reduced)

use super::columns::{Columns, HelpGroup};
use super::components::{
    ComponentSet, ComponentSource, common_parts, detail, has_equal_nodes, named,
};
use super::compose::{ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-gather with components from `intra` (all-gather, or broadcast) and `inter` (all-gather).
/// None if a component is lacking.
pub fn schedule(
    grouping: &Grouping,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    let columns = Columns::new(grouping);
    let gathers = columns.column_sizes().map(|size| (Collective::AllGather, size));
    let across = ComponentSet::new(inter, gathers)?;
    let helps = columns.helper_group_sizes().map(|size| (Collective::Broadcast { root: 0 }, size));
    let helps = ComponentSet::new(&named(&["direct"]), helps)?;
    let size = grouping.size(0);
    let gathered = has_equal_nodes(grouping)
        .then(|| ComponentSet::new(intra, [(Collective::AllGather, size)]))
        .flatten();
    let (groups, spread) = match gathered {
        Some(set) => (None, set),
        None => {
            let all = columns
                .sizes_and_local_ranks()
                .map(|(size, root)| (Collective::Broadcast { root }, size));
            (Some(columns.count()), ComponentSet::new(intra, all)?)
        }
    };
    let block = common_parts([&across, &helps, &spread])?;
    let detail = detail(grouping, columns.count(), &[&spread], &across);
    let mut needs = ScheduleNeeds::default();
    let across = across.placed(1, 0, &mut needs);
    let helps = helps.on_other_links().placed(1 + columns.extra_columns, 0, &mut needs);
    let spread = spread.placed(groups.unwrap_or(1), 0, &mut needs);
    needs.lanes += columns.extra_columns * helps.lanes();
    let layout = AllGatherLayout { columns, block, across, helps, spread, groups };
    let size = (grouping.nranks(), block);
    let schedule = compose("hier", Collective::AllGather, size, layout, &needs);
    Some(schedule.with_detail(detail).canonical())
}

struct AllGatherLayout {
    columns: Columns,
    /// Parts per block.
    block: u32,
    across: ComponentSet,
    helps: ComponentSet,
    spread: ComponentSet,
    /// The number of broadcasts side by side in phase 3; None if there are all-gathers one after
    /// the other instead.
    groups: Option<u32>,
}

/// The slot of phase 1.
const ACROSS: u32 = 0;
/// The slot of phase 2 for a rank that is a helper.
const HELPS: u32 = 1;
/// The first slot of phase 2 for a rank that is helped, one slot per column.
const HELPED: u32 = 2;

/// The phase that a slot belongs to.
enum AllGatherPhase {
    Across,
    Help(Option<HelpGroup>),
    /// A broadcast from that local rank, or all-gathers.
    Spread(Option<u32>),
}

impl AllGatherLayout {
    fn phase(&self, rank: Rank, slot: u32) -> AllGatherPhase {
        let helped = self.columns.extra_slots(HELPED);
        match slot {
            ACROSS => AllGatherPhase::Across,
            HELPS => AllGatherPhase::Help(self.columns.helper_group(rank)),
            slot if helped.contains(&slot) => {
                AllGatherPhase::Help(self.columns.helped_group(rank, slot - HELPED))
            }
            slot => AllGatherPhase::Spread(self.groups.map(|_| slot - helped.end)),
        }
    }
}

impl ComponentLayout for AllGatherLayout {
    fn slots(&self) -> u32 {
        self.columns.extra_slots(HELPED).end + self.groups.unwrap_or(1)
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let Self { columns, block, across, helps, spread, .. } = self;
        let grouping = &columns.grouping;
        let (local, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        Some(match self.phase(rank, slot) {
            AllGatherPhase::Across => {
                let column = columns.size(local);
                let component = across.component((column, 0), columns.index(rank), *block, 0);
                RankComponent { in_place: false, ..component }
            }
            AllGatherPhase::Help(help) => {
                let HelpGroup { column, member, members, .. } = help?;
                let parts = columns.size(column) * block;
                let follows = if member == 0 { ACROSS..ACROSS + 1 } else { 0..0 };
                let component = helps.component((members, 0), member, parts, slot - HELPS);
                RankComponent { follows: [follows, 0..0], ..component }
            }
            AllGatherPhase::Spread(Some(root)) if root >= size => return None,
            AllGatherPhase::Spread(Some(root)) => {
                let parts = columns.held_ranks(root, size) * block;
                let component = spread.component((size, root), local, parts, root);
                let own = [ACROSS..ACROSS + 1, columns.extra_slots(HELPED)];
                RankComponent {
                    follows: if root == local { own } else { [0..0, 0..0] },
                    ..component
                }
            }
            AllGatherPhase::Spread(None) => {
                let component = spread.component((size, 0), local, grouping.nodes() * block, 0);
                RankComponent { follows: [ACROSS..ACROSS + 1, 0..0], ..component }
            }
        })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let grouping = &self.columns.grouping;
        match self.phase(rank, slot) {
            AllGatherPhase::Across => self.columns.rank(grouping.local_rank(rank), member),
            AllGatherPhase::Help(help) => {
                self.columns.member(help.expect("a component has members"), member)
            }
            AllGatherPhase::Spread(_) => grouping.ranks_of(grouping.node(rank))[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let Self { columns, block, .. } = self;
        let grouping = &columns.grouping;
        // The parts run through the blocks of several ranks: which one, and which part of it.
        let (nth, part) = (chunk.part / block, chunk.part % block);
        let owner = match self.phase(rank, slot) {
            AllGatherPhase::Across if chunk.is_input => return Chunk::Input(part),
            AllGatherPhase::Across => columns.rank(grouping.local_rank(rank), chunk.block),
            AllGatherPhase::Help(help) => {
                columns.rank(help.expect("a component has chunks").column, nth)
            }
            AllGatherPhase::Spread(Some(root)) => {
                columns.held_rank(root, grouping.size(grouping.node(rank)), nth)
            }
            AllGatherPhase::Spread(None) => columns.rank(chunk.block, nth),
        };
        Chunk::Output(owner * block + part)
    }
}
