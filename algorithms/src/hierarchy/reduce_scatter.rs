//! Reduce-scatter: within each node, then between the nodes on every column: the [all-gather](super::all_gather) reversed.
//!
//! * phase 1: in each node, reduce-scatters of the blocks, one for each node; where nodes differ in size or there is no such component,
//!   a reduce to each rank of the blocks of the columns that it holds. From the send buffer to scratch.
//! * phase 2, where nodes differ in size: the nodes that are not in a column send their sums of its blocks to ranks of the column, which
//!   reduce them with their own
//! * phase 3: in each column, a reduce-scatter; the reduction is finished here
//!
//! * bytes out of a node: each block of the others once, the least there is
//! * cost, with equal nodes and blocks of `m`: `N T_reduce_scatter(s, m) + T_reduce_scatter(N, m)`; a rank begins phase 1 of a tile when it is
//!   through with the former
//! * scratch: that of the components, a block for each rank of the columns that a rank holds (`N`, with equal nodes), and a chunk for each
//!   lane of phase 1
//! * channels: as for the all-gather
//! * class: canonical if the components are and every node is an aligned subtree of the canonical tree and all are equal, else fast

use super::columns::{Columns, Help};
use super::components::{Kit, Source, common_parts, detail, is_aligned, is_even, named};
use super::compose::{At, Guard, Layout, Needs, Part, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Reduce-scatter with components from `intra` (reduce-scatter, or reduce) and `inter` (reduce-scatter). None if a component is lacking, or
/// there is one rank only.
pub fn schedule(grouping: &Grouping, intra: Source<'_>, inter: Source<'_>) -> Option<Schedule> {
    if grouping.nranks() == 1 {
        return None;
    }
    let columns = Columns::new(grouping);
    let scatters = columns.sizes().map(|size| (Collective::ReduceScatter, size));
    let across = Kit::new(inter, scatters)?;
    let helps = columns.groups().map(|size| (Collective::Reduce { root: 0 }, size));
    let helps = Kit::new(&named(&["direct"]), helps)?;
    let size = grouping.size(0);
    let even = is_even(grouping);
    let scattered = even.then(|| Kit::new(intra, [(Collective::ReduceScatter, size)])).flatten();
    let (groups, collect) = match scattered {
        Some(kit) => (None, kit),
        None => {
            let all = columns.places().map(|(size, root)| (Collective::Reduce { root }, size));
            (Some(columns.count()), Kit::new(intra, all)?)
        }
    };
    let block = common_parts([&across, &helps, &collect])?;
    let detail = detail(grouping, columns.count(), &[&collect], &across);
    let canonical = even && is_aligned(grouping) && collect.is_canonical() && across.is_canonical();
    let mut needs = Needs::default();
    let across = across.placed(1, 0, &mut needs);
    let helps = helps.on_other_links().placed(1 + columns.more, 0, &mut needs);
    let copies = groups.unwrap_or(1);
    let collect = collect.placed(copies, 0, &mut needs);
    needs.lanes += columns.more * helps.lanes();
    let weight = columns.places().map(|(size, place)| columns.weight(place, size)).max();
    let sums = needs.room(weight.unwrap_or(0) * block);
    let guards = needs.room(copies * collect.lanes());
    let layout = Layered { columns, block, across, helps, collect, groups, sums, guards };
    let size = (grouping.nranks(), block);
    let schedule = compose("hier", Collective::ReduceScatter, size, layout, &needs);
    let schedule = schedule.with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct Layered {
    columns: Columns,
    /// Parts per block.
    block: u32,
    across: Kit,
    helps: Kit,
    collect: Kit,
    /// Reduces side by side in phase 1; None if they are reduce-scatters one after the other.
    groups: Option<u32>,
    /// The scratch of a node's sums: of the blocks of the ranks in the columns that a rank holds, in their order.
    sums: u32,
    guards: u32,
}

/// What a slot is for.
enum Phase {
    /// To that place, or reduce-scatters.
    Collect(Option<u32>),
    Help(Option<Help>),
    Across,
}

impl Layered {
    /// The first slot of phase 2: for the rank that helps. Those of the columns that it needs help with come next.
    fn helps_slot(&self) -> u32 {
        self.groups.unwrap_or(1)
    }

    fn phase(&self, rank: Rank, slot: u32) -> Phase {
        let helps = self.helps_slot();
        let helped = self.columns.slots(helps + 1);
        match slot {
            slot if slot < helps => Phase::Collect(self.groups.map(|_| slot)),
            slot if slot == helps => Phase::Help(self.columns.helps(rank)),
            slot if helped.contains(&slot) => {
                Phase::Help(self.columns.helped(rank, slot - helped.start))
            }
            _ => Phase::Across,
        }
    }
}

impl Layout for Layered {
    fn slots(&self) -> u32 {
        self.columns.slots(self.helps_slot() + 1).end + 1
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { columns, block, across, helps, collect, .. } = self;
        let grouping = &columns.grouping;
        let (place, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        let own = self.groups.map_or(0, |_| place);
        let helping = self.helps_slot();
        Some(match self.phase(rank, slot) {
            Phase::Collect(Some(root)) if root >= size => return None,
            Phase::Collect(root) => {
                let parts = match root {
                    Some(root) => columns.weight(root, size) * block,
                    None => grouping.nodes() * block,
                };
                // In place, the own block of the send buffer is the receive buffer.
                let other = (rank + 1) % grouping.nranks();
                let guard = Guard {
                    until: helping..self.slots(),
                    read: Chunk::Input(other * block),
                    write: self.guards + slot * collect.lanes(),
                };
                let part = collect.part((size, root.unwrap_or(0)), place, parts, slot);
                Part { in_place: false, guard: Some(guard), ..part }
            }
            Phase::Help(help) => {
                let Help { column, me, members, .. } = help?;
                let parts = columns.size(column) * block;
                let part = helps.part((members, 0), me, parts, slot - helping);
                Part { follows: [own..own + 1, 0..0], ..part }
            }
            Phase::Across => {
                let column = columns.size(place);
                let part = across.part((column, 0), columns.index(rank), *block, 0);
                let after = if columns.helps(rank).is_some() { helping } else { own };
                let follows = [after..after + 1, 0..0];
                Part { in_place: false, finishes: true, follows, ..part }
            }
        })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let grouping = &self.columns.grouping;
        match self.phase(rank, slot) {
            Phase::Across => self.columns.rank(grouping.local_rank(rank), member),
            Phase::Help(help) => {
                self.columns.member(help.expect("a component has members"), member)
            }
            Phase::Collect(_) => grouping.ranks_of(grouping.node(rank))[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk {
        let Self { columns, block, sums, .. } = self;
        let grouping = &columns.grouping;
        let size = grouping.size(grouping.node(rank));
        let (nth, part) = (at.part / block, at.part % block);
        match self.phase(rank, slot) {
            Phase::Collect(root) if at.input => {
                let owner = match root {
                    Some(root) => columns.nth(root, size, nth),
                    None => columns.rank(at.block, nth),
                };
                Chunk::Input(owner * block + part)
            }
            Phase::Collect(_) => Chunk::Scratch(sums + at.part),
            Phase::Help(help) => {
                let column = help.expect("a component has chunks").column;
                Chunk::Scratch(sums + columns.offset(column, size) * block + at.part)
            }
            Phase::Across if at.input => Chunk::Scratch(sums + at.block * block + part),
            Phase::Across => Chunk::Output(part),
        }
    }
}
