//! All-to-all over nodes of one size: within each node, then between the nodes on every rail.
//!
//! A block for place `b` of node `v` first goes to place `b` of its sender's own node, then along rail `b` to node `v`; so a rank talks to
//! `s - 1` ranks of its node and to `N - 1` others, and a network of rails is never crossed.
//!
//! * phase 1: in each node, all-to-alls one after the other, one for each destination node. From the send buffer to scratch.
//! * phase 2: on each rail, all-to-alls one after the other, one for each place of the senders
//!
//! * bytes between nodes, per rank: `(N-1) s m` for blocks of `m`, what the direct algorithm sends too; in a node as many more
//! * cost: `N T_all_to_all(s, m) + s T_all_to_all(N, m)`; a rank begins phase 1 of a tile when it is through with the former
//! * scratch: that of the components, a block for each rank, and a chunk for each lane of phase 1
//! * channels: `c_1` within a node, `c_2` between nodes
//! * class: canonical (nothing is reduced)
//! * wins: many ranks, where each pair of far ranks would need a connection of its own or cross between rails

use super::components::{Kit, Source, common_parts, detail, is_even};
use super::compose::{At, Guard, Layout, Needs, Part, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-to-all with components from `intra` and `inter` (all-to-all both). None if one is lacking, or the nodes are not of one size.
pub fn schedule(grouping: &Grouping, intra: Source<'_>, inter: Source<'_>) -> Option<Schedule> {
    if !is_even(grouping) {
        return None;
    }
    let size = grouping.size(0);
    let within = Kit::new(intra, [(Collective::AllToAll, size)])?;
    let across = Kit::new(inter, [(Collective::AllToAll, grouping.nodes())])?;
    let block = common_parts([&within, &across])?;
    let detail = detail(grouping, size, &[&within], &across);
    let mut needs = Needs::default();
    let within = within.placed(1, 0, &mut needs);
    let across = across.placed(1, 0, &mut needs);
    let kept = needs.room(grouping.nranks() * block);
    let guards = needs.room(within.lanes());
    let grouping = grouping.clone();
    let all = (grouping.nranks(), block);
    let layout = Layered { grouping, size, block, within, across, kept, guards };
    let schedule = compose("hier", Collective::AllToAll, all, layout, &needs);
    Some(schedule.with_detail(detail).canonical())
}

struct Layered {
    grouping: Grouping,
    /// Ranks per node.
    size: u32,
    /// Parts per block.
    block: u32,
    within: Kit,
    across: Kit,
    /// The scratch of the blocks between the phases: by destination node and place of the sender.
    kept: u32,
    guards: u32,
}

/// Phase 1.
const WITHIN: u32 = 0;
/// Phase 2.
const ACROSS: u32 = 1;

impl Layout for Layered {
    fn slots(&self) -> u32 {
        2
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { grouping, size, block, within, across, guards, .. } = self;
        let (node, place, nodes) =
            (grouping.node(rank), grouping.local_rank(rank), grouping.nodes());
        if slot == WITHIN {
            let guard = Guard { until: ACROSS..ACROSS + 1, read: Chunk::Input(0), write: *guards };
            let part = within.part((*size, 0), place, nodes * block, 0);
            return Some(Part { in_place: false, guard: Some(guard), ..part });
        }
        let part = across.part((nodes, 0), node, size * block, 0);
        Some(Part { in_place: false, follows: [WITHIN..WITHIN + 1, 0..0], ..part })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        if slot == WITHIN {
            return self.grouping.ranks_of(self.grouping.node(rank))[member as usize];
        }
        self.grouping.ranks_of(member)[self.grouping.local_rank(rank) as usize]
    }

    fn chunk(&self, _: Rank, slot: u32, at: At) -> Chunk {
        let Self { grouping, size, block, kept, .. } = self;
        let (nth, part) = (at.part / block, at.part % block);
        let rank = |node: u32, place: u32| grouping.ranks_of(node)[place as usize];
        let between =
            |node: u32, place: u32| Chunk::Scratch(kept + (node * size + place) * block + part);
        match (slot, at.input) {
            (WITHIN, true) => Chunk::Input(rank(nth, at.block) * block + part),
            (WITHIN, false) => between(nth, at.block),
            (_, true) => between(at.block, nth),
            (_, false) => Chunk::Output(rank(at.block, nth) * block + part),
        }
    }
}
