//! Reduce: to the carriers in each node, then between the nodes on every rail, then the pieces to
//! the root.
//!
//! The rails are those of the [all-reduce](super::all_reduce); on its own node the root carries
//! one.
//!
//! * phase 1: in each node, piece `j` is reduced to the carrier of rail `j`, by one reduce per rail
//!   or by one reduce-scatter. It goes from the send buffer to scratch, since only the root has a
//!   receive buffer; on the root it goes there.
//! * phase 2: on each rail, a reduce to the root's node, in place; the reduction is finished here.
//! * phase 3: on the root's node, the carriers' pieces are gathered to the root. With one rail
//!   there is no phase 3, since the root is the only carrier.
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`
//! * cost: `T_reduce(s, m) + T_reduce(N, m/R) + T_gather(R, m/R)`. The phases of different tiles
//!   overlap, except phase 1 of a carrier, which waits until its piece of the former tile is passed
//!   on.
//! * scratch: that of the components, a piece, and a chunk for each lane of phase 1
//! * channels: `R c_1 + c_3` within a node, `c_2` between nodes
//! * class: canonical if the components are and every node is an aligned subtree of the canonical
//!   tree, else fast

use super::components::{ComponentSource, common_parts, detail, is_aligned};
use super::compose::{
    ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, TileGuard, compose,
};
use super::rooted::{RootedCollectives, RootedPhases};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Reduce to `root` over `rails` rails, with components from `intra` (reduce-scatter, or reduce)
/// and `inter` (reduce). None if a component is lacking, or there are no such rails.
pub fn schedule(
    grouping: &Grouping,
    root: Rank,
    rails: u32,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    let collectives = RootedCollectives {
        whole: Collective::ReduceScatter,
        rooted: |root| Collective::Reduce { root },
        on_root_node: |root| Collective::Gather { root },
    };
    let phases = RootedPhases::new(grouping, (root, rails), &collectives, intra, inter)?;
    let RootedPhases { rails, groups, within, across, on_root_node, .. } = phases;
    let piece = common_parts([&within, &across, &on_root_node])?;
    let detail = detail(grouping, rails.count, &[&within], &across);
    let canonical = is_aligned(grouping) && within.is_canonical() && across.is_canonical();
    let mut needs = ScheduleNeeds::default();
    let across = across.placed(1, 0, &mut needs);
    let within = within.placed(groups, 0, &mut needs);
    let on_root_node = on_root_node.placed(1, within.channels_end(groups), &mut needs);
    let kept = needs.reserve_scratch(piece);
    let guards = needs.reserve_scratch(groups * within.lanes());
    let size = (grouping.nranks(), rails.count * piece);
    let collective = Collective::Reduce { root };
    let phases = RootedPhases { rails, groups, piece, within, across, on_root_node };
    let layout = ReduceLayout { phases, kept, guards };
    let schedule = compose("hier", collective, size, layout, &needs).with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct ReduceLayout {
    phases: RootedPhases,
    /// The scratch chunks where carriers keep their piece.
    kept: u32,
    guards: u32,
}

/// Slots: phase 1 of each group, phase 2, phase 3.
impl ComponentLayout for ReduceLayout {
    fn slots(&self) -> u32 {
        self.phases.groups + 2
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let Self { phases, guards, .. } = self;
        let groups = phases.groups;
        let after = |slot| [slot..slot + 1, 0..0];
        if slot < groups {
            let guard = TileGuard {
                until: groups..groups + 2,
                read: Chunk::Input(0),
                write: guards + slot * phases.within.lanes(),
            };
            let guard = (rank != phases.rails.root).then_some(guard);
            return Some(RankComponent { in_place: false, guard, ..phases.within(rank, slot) });
        }
        if slot == groups {
            let component = phases.across(rank)?;
            let follows = after(phases.own_rail(rank) % groups);
            return Some(RankComponent { finishes: true, follows, ..component });
        }
        let component = phases.on_root_node(rank)?;
        Some(RankComponent { follows: after(groups), ..component })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let phases = &self.phases;
        if slot < phases.groups {
            phases.member_within(rank, member)
        } else if slot == phases.groups {
            phases.member_across(rank, member)
        } else {
            phases.member_on_root_node(member)
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let RootedPhases { rails, groups, piece, .. } = &self.phases;
        if slot < *groups && chunk.is_input {
            return Chunk::Input((slot + chunk.block) * piece + chunk.part);
        }
        if rank != rails.root {
            return Chunk::Scratch(self.kept + chunk.part);
        }
        let rail = if slot <= *groups { self.phases.own_rail(rank) } else { chunk.block };
        Chunk::Output(rail * piece + chunk.part)
    }
}
