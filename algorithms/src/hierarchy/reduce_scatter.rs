//! Reduce-scatter: within each node, then between the nodes on every column. It is the
//! [all-gather](super::all_gather) reversed.
//!
//! * phase 1: in each node, reduce-scatters of the blocks, one for each node. Where nodes differ in
//!   size, or there is no such component, a reduce to each rank of the blocks of the columns that
//!   it holds. From the send buffer to scratch.
//! * phase 2, where nodes differ in size: the nodes that are not in a column send their sums of its
//!   blocks to ranks of the column, which reduce them with their own
//! * phase 3: in each column, a reduce-scatter; the reduction is finished here
//!
//! * bytes out of a node: each block of the others once, which is the minimum
//! * cost, with equal nodes and blocks of `m`: `N T_reduce_scatter(s, m) + T_reduce_scatter(N, m)`;
//!   a rank begins phase 1 of a tile when it has finished the former tile
//! * scratch: that of the components, a block for each rank of the columns that a rank holds (`N`,
//!   with equal nodes), and a chunk for each lane of phase 1
//! * channels: as for the all-gather
//! * class: canonical if the components are and all nodes are equal aligned subtrees of the
//!   canonical tree, else fast

use super::columns::{Columns, HelpGroup};
use super::components::{
    ComponentSet, ComponentSource, common_parts, detail, has_equal_nodes, is_aligned, named,
};
use super::compose::{
    ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, TileGuard, compose,
};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Reduce-scatter with components from `intra` (reduce-scatter, or reduce) and `inter`
/// (reduce-scatter). None if a component is lacking, or there is only one rank.
pub fn schedule(
    grouping: &Grouping,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    if grouping.nranks() == 1 {
        return None;
    }
    let columns = Columns::new(grouping);
    let scatters = columns.column_sizes().map(|size| (Collective::ReduceScatter, size));
    let across = ComponentSet::new(inter, scatters)?;
    let helps = columns.helper_group_sizes().map(|size| (Collective::Reduce { root: 0 }, size));
    let helps = ComponentSet::new(&named(&["direct"]), helps)?;
    let size = grouping.size(0);
    let even = has_equal_nodes(grouping);
    let scattered =
        even.then(|| ComponentSet::new(intra, [(Collective::ReduceScatter, size)])).flatten();
    let (groups, collect) = match scattered {
        Some(set) => (None, set),
        None => {
            let all = columns
                .sizes_and_local_ranks()
                .map(|(size, root)| (Collective::Reduce { root }, size));
            (Some(columns.count()), ComponentSet::new(intra, all)?)
        }
    };
    let block = common_parts([&across, &helps, &collect])?;
    let detail = detail(grouping, columns.count(), &[&collect], &across);
    let canonical = even && is_aligned(grouping) && collect.is_canonical() && across.is_canonical();
    let mut needs = ScheduleNeeds::default();
    let across = across.placed(1, 0, &mut needs);
    let helps = helps.on_other_links().placed(1 + columns.extra_columns, 0, &mut needs);
    let copies = groups.unwrap_or(1);
    let collect = collect.placed(copies, 0, &mut needs);
    needs.lanes += columns.extra_columns * helps.lanes();
    let most_sums =
        columns.sizes_and_local_ranks().map(|(size, local)| columns.held_ranks(local, size)).max();
    let sums = needs.reserve_scratch(most_sums.unwrap_or(0) * block);
    let guards = needs.reserve_scratch(copies * collect.lanes());
    let layout =
        ReduceScatterLayout { columns, block, across, helps, collect, groups, sums, guards };
    let size = (grouping.nranks(), block);
    let schedule = compose("hier", Collective::ReduceScatter, size, layout, &needs);
    let schedule = schedule.with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct ReduceScatterLayout {
    columns: Columns,
    /// Parts per block.
    block: u32,
    across: ComponentSet,
    helps: ComponentSet,
    collect: ComponentSet,
    /// The number of reduces side by side in phase 1; None if there are reduce-scatters one after
    /// the other instead.
    groups: Option<u32>,
    /// The first scratch chunk of the node's sums of the blocks of the ranks in the columns that a
    /// rank holds, in their order.
    sums: u32,
    guards: u32,
}

/// The phase that a slot belongs to.
enum ReduceScatterPhase {
    /// A reduce to that local rank, or reduce-scatters.
    Collect(Option<u32>),
    Help(Option<HelpGroup>),
    Across,
}

impl ReduceScatterLayout {
    /// The first slot of phase 2, for a rank that is a helper. The slots for the columns with which
    /// a rank is helped come next.
    fn helps_slot(&self) -> u32 {
        self.groups.unwrap_or(1)
    }

    fn phase(&self, rank: Rank, slot: u32) -> ReduceScatterPhase {
        let helps = self.helps_slot();
        let helped = self.columns.extra_slots(helps + 1);
        match slot {
            slot if slot < helps => ReduceScatterPhase::Collect(self.groups.map(|_| slot)),
            slot if slot == helps => ReduceScatterPhase::Help(self.columns.helper_group(rank)),
            slot if helped.contains(&slot) => {
                ReduceScatterPhase::Help(self.columns.helped_group(rank, slot - helped.start))
            }
            _ => ReduceScatterPhase::Across,
        }
    }
}

impl ComponentLayout for ReduceScatterLayout {
    fn slots(&self) -> u32 {
        self.columns.extra_slots(self.helps_slot() + 1).end + 1
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let Self { columns, block, across, helps, collect, .. } = self;
        let grouping = &columns.grouping;
        let (local, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        let own = self.groups.map_or(0, |_| local);
        let helping = self.helps_slot();
        Some(match self.phase(rank, slot) {
            ReduceScatterPhase::Collect(Some(root)) if root >= size => return None,
            ReduceScatterPhase::Collect(root) => {
                let parts = match root {
                    Some(root) => columns.held_ranks(root, size) * block,
                    None => grouping.nodes() * block,
                };
                // In place, the rank's own block of the send buffer is the receive buffer.
                let other = (rank + 1) % grouping.nranks();
                let guard = TileGuard {
                    until: helping..self.slots(),
                    read: Chunk::Input(other * block),
                    write: self.guards + slot * collect.lanes(),
                };
                let component = collect.component((size, root.unwrap_or(0)), local, parts, slot);
                RankComponent { in_place: false, guard: Some(guard), ..component }
            }
            ReduceScatterPhase::Help(help) => {
                let HelpGroup { column, member, members, .. } = help?;
                let parts = columns.size(column) * block;
                let component = helps.component((members, 0), member, parts, slot - helping);
                RankComponent { follows: [own..own + 1, 0..0], ..component }
            }
            ReduceScatterPhase::Across => {
                let column = columns.size(local);
                let component = across.component((column, 0), columns.index(rank), *block, 0);
                let after = if columns.helper_group(rank).is_some() { helping } else { own };
                let follows = [after..after + 1, 0..0];
                RankComponent { in_place: false, finishes: true, follows, ..component }
            }
        })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let grouping = &self.columns.grouping;
        match self.phase(rank, slot) {
            ReduceScatterPhase::Across => self.columns.rank(grouping.local_rank(rank), member),
            ReduceScatterPhase::Help(help) => {
                self.columns.member(help.expect("a component has members"), member)
            }
            ReduceScatterPhase::Collect(_) => {
                grouping.ranks_of(grouping.node(rank))[member as usize]
            }
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let Self { columns, block, sums, .. } = self;
        let grouping = &columns.grouping;
        let size = grouping.size(grouping.node(rank));
        let (nth, part) = (chunk.part / block, chunk.part % block);
        match self.phase(rank, slot) {
            ReduceScatterPhase::Collect(root) if chunk.is_input => {
                let owner = match root {
                    Some(root) => columns.held_rank(root, size, nth),
                    None => columns.rank(chunk.block, nth),
                };
                Chunk::Input(owner * block + part)
            }
            ReduceScatterPhase::Collect(_) => Chunk::Scratch(sums + chunk.part),
            ReduceScatterPhase::Help(help) => {
                let column = help.expect("a component has chunks").column;
                Chunk::Scratch(sums + columns.offset(column, size) * block + chunk.part)
            }
            ReduceScatterPhase::Across if chunk.is_input => {
                Chunk::Scratch(sums + chunk.block * block + part)
            }
            ReduceScatterPhase::Across => Chunk::Output(part),
        }
    }
}
