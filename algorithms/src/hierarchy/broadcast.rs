//! Broadcast: pieces from the root to the carriers of its node, then between the nodes on every
//! rail, then all pieces within each node.
//!
//! The rails are those of the [all-reduce](super::all_reduce); on its own node the root carries
//! one.
//!
//! * phase 1: on the root's node, the pieces are scattered to the carriers. With one rail there is
//!   no phase 1, since the root is the only carrier.
//! * phase 2: on each rail, a broadcast from the root's node
//! * phase 3: in each node, piece `j` is broadcast from the carrier of rail `j`, by one broadcast
//!   per rail or by one all-gather
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`
//! * cost: `T_scatter(R, m/R) + T_broadcast(N, m/R) + T_broadcast(s, m)`, the phases of different
//!   tiles overlapping
//! * scratch: that of the components, nothing between them
//! * channels: `c_1 + R c_3` within a node, `c_2` between nodes
//! * class: canonical (nothing is reduced)

use super::components::{ComponentSource, common_parts, detail};
use super::compose::{ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, compose};
use super::rooted::{RootedCollectives, RootedPhases};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Broadcast from `root` over `rails` rails, with components from `intra` (all-gather, or
/// broadcast) and `inter` (broadcast). None if a component is lacking, or there are no such rails.
pub fn schedule(
    grouping: &Grouping,
    root: Rank,
    rails: u32,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    let collectives = RootedCollectives {
        whole: Collective::AllGather,
        rooted: |root| Collective::Broadcast { root },
        on_root_node: |root| Collective::Scatter { root },
    };
    let phases = RootedPhases::new(grouping, (root, rails), &collectives, intra, inter)?;
    let RootedPhases { rails, groups, within, across, on_root_node, .. } = phases;
    let piece = common_parts([&on_root_node, &across, &within])?;
    let detail = detail(grouping, rails.count, &[&within], &across);
    let mut needs = ScheduleNeeds::default();
    let across = across.placed(1, 0, &mut needs);
    let on_root_node = on_root_node.placed(1, 0, &mut needs);
    let within = within.placed(groups, on_root_node.channels_end(1), &mut needs);
    let size = (grouping.nranks(), rails.count * piece);
    let collective = Collective::Broadcast { root };
    let phases = RootedPhases { rails, groups, piece, within, across, on_root_node };
    let layout = BroadcastLayout { phases };
    Some(compose("hier", collective, size, layout, &needs).with_detail(detail).canonical())
}

struct BroadcastLayout {
    phases: RootedPhases,
}

/// The slot of phase 1.
const SCATTER: u32 = 0;
/// The slot of phase 2.
const ACROSS: u32 = 1;
/// The slot of the first group of phase 3.
const WITHIN: u32 = 2;

impl ComponentLayout for BroadcastLayout {
    fn slots(&self) -> u32 {
        WITHIN + self.phases.groups
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let phases = &self.phases;
        let rails = &phases.rails;
        let after = |slot| [slot..slot + 1, 0..0];
        if let Some(group) = slot.checked_sub(WITHIN) {
            let carries = rails.rail_of(rank).is_some_and(|rail| rail % phases.groups == group);
            let follows = after(if carries { ACROSS } else { SCATTER });
            return Some(RankComponent { follows, ..phases.within(rank, group) });
        }
        if slot == ACROSS {
            let (in_place, follows) = (rails.count > 1, after(SCATTER));
            return Some(RankComponent { in_place, follows, ..phases.across(rank)? });
        }
        Some(RankComponent { in_place: false, ..phases.on_root_node(rank)? })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        match slot {
            SCATTER => self.phases.member_on_root_node(member),
            ACROSS => self.phases.member_across(rank, member),
            _ => self.phases.member_within(rank, member),
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let RootedPhases { rails, piece, .. } = &self.phases;
        let rail = match slot {
            SCATTER => chunk.block,
            ACROSS => self.phases.own_rail(rank),
            _ => slot - WITHIN + chunk.block,
        };
        let index = rail * piece + chunk.part;
        let reads_input = slot == SCATTER || slot == ACROSS && rails.count == 1;
        if chunk.is_input && reads_input { Chunk::Input(index) } else { Chunk::Output(index) }
    }
}
