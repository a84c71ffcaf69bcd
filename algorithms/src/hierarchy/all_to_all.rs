//! All-to-all over nodes of one size: within each node, then between the nodes on every rail.
//!
//! A block for local rank `b` of node `v` first goes to local rank `b` of its sender's own node,
//! then along rail `b` to node `v`. So a rank communicates with `s - 1` ranks of its node and with
//! `N - 1` others, and no message crosses from one rail of the network to another.
//!
//! * phase 1: in each node, all-to-alls one after the other, one for each destination node. From
//!   the send buffer to scratch.
//! * phase 2: on each rail, all-to-alls one after the other, one for each local rank of the senders
//!
//! * bytes between nodes, per rank: `(N-1) s m` for blocks of `m`, as much as the direct algorithm
//!   sends; within a node as many again
//! * cost: `N T_all_to_all(s, m) + s T_all_to_all(N, m)`; a rank begins phase 1 of a tile when it
//!   has finished the former tile
//! * scratch: that of the components, a block for each rank, and a chunk for each lane of phase 1
//! * channels: `c_1` within a node, `c_2` between nodes
//! * class: canonical (nothing is reduced)
//! * wins: many ranks, where each pair of ranks on different nodes would need its own connection or
//!   would cross between rails

use super::components::{ComponentSet, ComponentSource, common_parts, detail, has_equal_nodes};
use super::compose::{
    ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, TileGuard, compose,
};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-to-all with components from `intra` and `inter`, both all-to-alls. None if one is lacking,
/// or if nodes differ in size.
pub fn schedule(
    grouping: &Grouping,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    if !has_equal_nodes(grouping) {
        return None;
    }
    let size = grouping.size(0);
    let within = ComponentSet::new(intra, [(Collective::AllToAll, size)])?;
    let across = ComponentSet::new(inter, [(Collective::AllToAll, grouping.nodes())])?;
    let block = common_parts([&within, &across])?;
    let detail = detail(grouping, size, &[&within], &across);
    let mut needs = ScheduleNeeds::default();
    let within = within.placed(1, 0, &mut needs);
    let across = across.placed(1, 0, &mut needs);
    let kept = needs.reserve_scratch(grouping.nranks() * block);
    let guards = needs.reserve_scratch(within.lanes());
    let grouping = grouping.clone();
    let all = (grouping.nranks(), block);
    let layout = AllToAllLayout { grouping, size, block, within, across, kept, guards };
    let schedule = compose("hier", Collective::AllToAll, all, layout, &needs);
    Some(schedule.with_detail(detail).canonical())
}

struct AllToAllLayout {
    grouping: Grouping,
    /// Ranks per node.
    size: u32,
    /// Parts per block.
    block: u32,
    within: ComponentSet,
    across: ComponentSet,
    /// The first scratch chunk of the blocks between the phases: by destination node and local rank
    /// of the sender.
    kept: u32,
    guards: u32,
}

/// The slot of phase 1.
const WITHIN: u32 = 0;
/// The slot of phase 2.
const ACROSS: u32 = 1;

impl ComponentLayout for AllToAllLayout {
    fn slots(&self) -> u32 {
        2
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let Self { grouping, size, block, within, across, guards, .. } = self;
        let (node, local, nodes) =
            (grouping.node(rank), grouping.local_rank(rank), grouping.nodes());
        if slot == WITHIN {
            let guard =
                TileGuard { until: ACROSS..ACROSS + 1, read: Chunk::Input(0), write: *guards };
            let component = within.component((*size, 0), local, nodes * block, 0);
            return Some(RankComponent { in_place: false, guard: Some(guard), ..component });
        }
        let component = across.component((nodes, 0), node, size * block, 0);
        Some(RankComponent { in_place: false, follows: [WITHIN..WITHIN + 1, 0..0], ..component })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        if slot == WITHIN {
            return self.grouping.ranks_of(self.grouping.node(rank))[member as usize];
        }
        self.grouping.ranks_of(member)[self.grouping.local_rank(rank) as usize]
    }

    fn chunk(&self, _: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let Self { grouping, size, block, kept, .. } = self;
        let (nth, part) = (chunk.part / block, chunk.part % block);
        let rank = |node: u32, local: u32| grouping.ranks_of(node)[local as usize];
        let between =
            |node: u32, local: u32| Chunk::Scratch(kept + (node * size + local) * block + part);
        match (slot, chunk.is_input) {
            (WITHIN, true) => Chunk::Input(rank(nth, chunk.block) * block + part),
            (WITHIN, false) => between(nth, chunk.block),
            (_, true) => between(chunk.block, nth),
            (_, false) => Chunk::Output(rank(chunk.block, nth) * block + part),
        }
    }
}
