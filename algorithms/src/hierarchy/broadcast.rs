//! Broadcast: pieces from the root to the rails of its node, between the nodes on every rail, then all pieces in each node.
//!
//! The rails are those of the [all-reduce](super::all_reduce); on its own node the root carries one.
//!
//! * phase 1: on the root's node, the pieces are scattered to the carriers; with one rail there is nothing to do, since the root is
//!   its carrier
//! * phase 2: on each rail, a broadcast from the root's node
//! * phase 3: in each node, piece `j` is broadcast from the carrier of rail `j`, by a broadcast for each or by one all-gather
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`
//! * cost: `T_scatter(R, m/R) + T_broadcast(N, m/R) + T_broadcast(s, m)`, the phases of different tiles overlapping
//! * scratch: that of the components, nothing between them
//! * channels: `c_1 + R c_3` within a node, `c_2` between nodes
//! * class: canonical (nothing is reduced)

use super::components::{Kit, Source, common_parts, detail, is_even, named};
use super::compose::{At, Layout, Needs, Part, compose};
use super::rails::Rails;
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Broadcast from `root` over `rails` rails, with components from `intra` (all-gather, or broadcast) and `inter` (broadcast). None if a
/// component is lacking, or there are no such rails.
pub fn schedule(
    grouping: &Grouping,
    root: Rank,
    rails: u32,
    intra: Source<'_>,
    inter: Source<'_>,
) -> Option<Schedule> {
    if !(1..=grouping.smallest()).contains(&rails) {
        return None;
    }
    let all = is_even(grouping) && rails == grouping.size(0);
    let rails = Rails { grouping: grouping.clone(), rails, root };
    let gathered = all.then(|| Kit::new(intra, [(Collective::AllGather, rails.rails)])).flatten();
    let (groups, spread) = match gathered {
        Some(kit) => (1, kit),
        None => {
            let spreads = rails.seats().map(|(size, root)| (Collective::Broadcast { root }, size));
            (rails.rails, Kit::new(intra, spreads)?)
        }
    };
    let home = Collective::Broadcast { root: rails.home() };
    let across = Kit::new(inter, [(home, grouping.nodes())])?;
    let scatter = Collective::Scatter { root: rails.root_rail() };
    let scatter = Kit::new(&named(&["direct"]), [(scatter, rails.rails)])?;
    let piece = common_parts([&scatter, &across, &spread])?;
    let detail = detail(grouping, rails.rails, &[&spread], &across);
    let mut needs = Needs::default();
    let across = across.placed(1, 0, &mut needs);
    let scatter = scatter.placed(1, 0, &mut needs);
    let spread = spread.placed(groups, scatter.channels_end(1), &mut needs);
    let size = (grouping.nranks(), rails.rails * piece);
    let collective = Collective::Broadcast { root };
    let layout = Layered { rails, groups, piece, scatter, across, spread };
    Some(compose("hier", collective, size, layout, &needs).with_detail(detail).canonical())
}

struct Layered {
    rails: Rails,
    /// Components side by side in phase 3: one for each rail, or one for all.
    groups: u32,
    /// Parts per piece.
    piece: u32,
    scatter: Kit,
    across: Kit,
    spread: Kit,
}

/// Phase 1.
const SCATTER: u32 = 0;
/// Phase 2.
const ACROSS: u32 = 1;
/// The first group of phase 3.
const SPREAD: u32 = 2;

impl Layout for Layered {
    fn slots(&self) -> u32 {
        SPREAD + self.groups
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { rails, groups, piece, scatter, across, spread } = self;
        let grouping = &rails.grouping;
        let node = grouping.node(rank);
        let after = |slot| [slot..slot + 1, 0..0];
        if let Some(group) = slot.checked_sub(SPREAD) {
            let root = if *groups == rails.rails { rails.place(node, group) } else { 0 };
            let size = grouping.size(node);
            let carries = rails.rail(rank).is_some_and(|rail| rail % groups == group);
            let follows = after(if carries { ACROSS } else { SCATTER });
            let part = spread.part((size, root), grouping.local_rank(rank), *piece, group);
            return Some(Part { follows, ..part });
        }
        let rail = rails.rail(rank)?;
        if slot == ACROSS {
            let part = across.part((grouping.nodes(), rails.home()), node, *piece, 0);
            return Some(Part { in_place: rails.rails > 1, follows: after(SCATTER), ..part });
        }
        let scatters = rails.rails > 1 && node == rails.home();
        let part = || scatter.part((rails.rails, rails.root_rail()), rail, *piece, 0);
        scatters.then(|| Part { in_place: false, ..part() })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let node = self.rails.grouping.node(rank);
        match slot {
            SCATTER => self.rails.carrier(node, member),
            ACROSS => self.rails.carrier(member, self.own_rail(rank)),
            _ => self.rails.grouping.ranks_of(node)[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk {
        let rail = match slot {
            SCATTER => at.block,
            ACROSS => self.own_rail(rank),
            _ => slot - SPREAD + at.block,
        };
        let index = rail * self.piece + at.part;
        let sent = slot == SCATTER || slot == ACROSS && self.rails.rails == 1;
        if at.input && sent { Chunk::Input(index) } else { Chunk::Output(index) }
    }
}

impl Layered {
    fn own_rail(&self, rank: Rank) -> u32 {
        self.rails.rail(rank).expect("only carriers are in phases 1 and 2")
    }
}
