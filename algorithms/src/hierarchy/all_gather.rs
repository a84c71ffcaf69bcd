//! All-gather: between the nodes on every column, then within each node.
//!
//! Column `t` is the `t`th place of every node that has one (see `columns.rs` for what happens elsewhere).
//!
//! * phase 1: in each column, an all-gather of the ranks' blocks
//! * phase 2, where nodes differ in size: the ranks of a column send its blocks to the nodes that are not in it, one rank to each
//! * phase 3: in each node, all-gathers of what its ranks have, one for each node; where nodes differ in size or there is no such
//!   component, a broadcast from each rank of the columns that it holds
//!
//! * bytes into a node: each block of the others once, the least there is; out of a rank, with equal nodes: `(N-1) m` for blocks of `m`
//! * cost, with equal nodes: `T_all_gather(N, m) + N T_all_gather(s, m)`; the second term is the nodes' own speed
//! * scratch: that of the components, nothing between them
//! * channels: `c_3` within a node, with broadcasts `s` times that for the largest node of `s`; between nodes the larger of `c_1` and 1
//! * class: canonical (nothing is reduced)

use super::columns::{Columns, Help};
use super::components::{Kit, Source, common_parts, detail, is_even, named};
use super::compose::{At, Layout, Needs, Part, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-gather with components from `intra` (all-gather, or broadcast) and `inter` (all-gather). None if a component is lacking.
pub fn schedule(grouping: &Grouping, intra: Source<'_>, inter: Source<'_>) -> Option<Schedule> {
    let columns = Columns::new(grouping);
    let gathers = columns.sizes().map(|size| (Collective::AllGather, size));
    let across = Kit::new(inter, gathers)?;
    let helps = columns.groups().map(|size| (Collective::Broadcast { root: 0 }, size));
    let helps = Kit::new(&named(&["direct"]), helps)?;
    let size = grouping.size(0);
    let gathered =
        is_even(grouping).then(|| Kit::new(intra, [(Collective::AllGather, size)])).flatten();
    let (groups, spread) = match gathered {
        Some(kit) => (None, kit),
        None => {
            let all = columns.places().map(|(size, root)| (Collective::Broadcast { root }, size));
            (Some(columns.count()), Kit::new(intra, all)?)
        }
    };
    let block = common_parts([&across, &helps, &spread])?;
    let detail = detail(grouping, columns.count(), &[&spread], &across);
    let mut needs = Needs::default();
    let across = across.placed(1, 0, &mut needs);
    let helps = helps.on_other_links().placed(1 + columns.more, 0, &mut needs);
    let spread = spread.placed(groups.unwrap_or(1), 0, &mut needs);
    needs.lanes += columns.more * helps.lanes();
    let layout = Layered { columns, block, across, helps, spread, groups };
    let size = (grouping.nranks(), block);
    let schedule = compose("hier", Collective::AllGather, size, layout, &needs);
    Some(schedule.with_detail(detail).canonical())
}

struct Layered {
    columns: Columns,
    /// Parts per block.
    block: u32,
    across: Kit,
    helps: Kit,
    spread: Kit,
    /// Broadcasts side by side in phase 3; None if they are all-gathers one after the other.
    groups: Option<u32>,
}

/// Phase 1.
const ACROSS: u32 = 0;
/// Phase 2, for the rank that gives.
const HELPS: u32 = 1;
/// Phase 2, for the rank that takes: the first column.
const HELPED: u32 = 2;

/// What a slot is for.
enum Phase {
    Across,
    Help(Option<Help>),
    /// From that place, or all-gathers.
    Spread(Option<u32>),
}

impl Layered {
    fn phase(&self, rank: Rank, slot: u32) -> Phase {
        let helped = self.columns.slots(HELPED);
        match slot {
            ACROSS => Phase::Across,
            HELPS => Phase::Help(self.columns.helps(rank)),
            slot if helped.contains(&slot) => Phase::Help(self.columns.helped(rank, slot - HELPED)),
            slot => Phase::Spread(self.groups.map(|_| slot - helped.end)),
        }
    }
}

impl Layout for Layered {
    fn slots(&self) -> u32 {
        self.columns.slots(HELPED).end + self.groups.unwrap_or(1)
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { columns, block, across, helps, spread, .. } = self;
        let grouping = &columns.grouping;
        let (place, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        Some(match self.phase(rank, slot) {
            Phase::Across => {
                let column = columns.size(place);
                let part = across.part((column, 0), columns.index(rank), *block, 0);
                Part { in_place: false, ..part }
            }
            Phase::Help(help) => {
                let Help { column, me, members, .. } = help?;
                let parts = columns.size(column) * block;
                let follows = if me == 0 { ACROSS..ACROSS + 1 } else { 0..0 };
                let part = helps.part((members, 0), me, parts, slot - HELPS);
                Part { follows: [follows, 0..0], ..part }
            }
            Phase::Spread(Some(root)) if root >= size => return None,
            Phase::Spread(Some(root)) => {
                let parts = columns.weight(root, size) * block;
                let part = spread.part((size, root), place, parts, root);
                let own = [ACROSS..ACROSS + 1, columns.slots(HELPED)];
                Part { follows: if root == place { own } else { [0..0, 0..0] }, ..part }
            }
            Phase::Spread(None) => {
                let part = spread.part((size, 0), place, grouping.nodes() * block, 0);
                Part { follows: [ACROSS..ACROSS + 1, 0..0], ..part }
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
            Phase::Spread(_) => grouping.ranks_of(grouping.node(rank))[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk {
        let Self { columns, block, .. } = self;
        let grouping = &columns.grouping;
        // Which of the ranks' blocks the parts run through.
        let (nth, part) = (at.part / block, at.part % block);
        let owner = match self.phase(rank, slot) {
            Phase::Across if at.input => return Chunk::Input(part),
            Phase::Across => columns.rank(grouping.local_rank(rank), at.block),
            Phase::Help(help) => columns.rank(help.expect("a component has chunks").column, nth),
            Phase::Spread(Some(root)) => columns.nth(root, grouping.size(grouping.node(rank)), nth),
            Phase::Spread(None) => columns.rank(at.block, nth),
        };
        Chunk::Output(owner * block + part)
    }
}
