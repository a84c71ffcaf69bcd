//! All-reduce in three phases: reduce in each node, all-reduce between the nodes on every rail, spread in each node.
//!
//! *Rail* `j` is the `j`th place of every node. There are `R` rails, at most as many as the smallest node has ranks, and the vector is in
//! `R` equal pieces; rail `j` carries piece `j`.
//!
//! * phase 1: in each node, piece `j` is reduced to place `j`: by `R` reduces side by side, or, where all nodes have `R` ranks and there
//!   is such a component, by one reduce-scatter. From the send buffer to the receive buffer.
//! * phase 2: on each rail the nodes' sums are reduced to all, in place in the receive buffer; the reduction is finished here
//! * phase 3: in each node, piece `j` is broadcast from place `j`, or all are all-gathered; in place likewise
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`; the `R` rails are `R` network ports
//! * cost: `T_reduce(s, m) + T_all_reduce(N, m/R) + T_broadcast(s, m)` for `N` nodes of `s` ranks, the phases of different tiles
//!   overlapping: with direct reduce-scatter and all-gather and a ring,
//!   `2 a + 2 (s-1)/s m b + 2 (N-1) A + 2 (N-1)/N m/s B + …`, capitals being of the network
//! * scratch: that of the components, nothing between them
//! * channels: `R (c_1 + c_3)` within a node, `c_2` between nodes, on disjoint links: the larger of the two
//! * class: canonical if the components are and every node is an aligned subtree of the canonical tree, else fast
//! * wins: several nodes, and a network slower than what joins a node's ranks

use super::components::{Kit, Source, common_parts, detail, is_aligned, is_even, sizes};
use super::compose::{At, Layout, Needs, Part, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-reduce over `rails` rails, with components from `intra` (reduce-scatter and all-gather, or reduce and broadcast) and
/// `inter` (all-reduce). None if a component is lacking, or there are no such rails.
pub fn schedule(
    grouping: &Grouping,
    rails: u32,
    intra: Source<'_>,
    inter: Source<'_>,
) -> Option<Schedule> {
    if !(1..=grouping.smallest()).contains(&rails) {
        return None;
    }
    let across = Kit::new(inter, [(Collective::AllReduce, grouping.nodes())])?;
    let all = is_even(grouping) && rails == grouping.size(0);
    let scattered = all.then(|| {
        let kit = |collective| Kit::new(intra, [(collective, rails)]);
        Some((kit(Collective::ReduceScatter)?, kit(Collective::AllGather)?))
    });
    let (scattered, (collect, spread)) = match scattered.flatten() {
        Some(kits) => (true, kits),
        None => {
            let each = |collective: fn(Rank) -> Collective| {
                let of = move |size| (0..rails).map(move |root| (collective(root), size));
                Kit::new(intra, sizes(grouping).flat_map(of))
            };
            let collect = each(|root| Collective::Reduce { root })?;
            (false, (collect, each(|root| Collective::Broadcast { root })?))
        }
    };
    let piece = common_parts([&collect, &across, &spread])?;
    let detail = detail(grouping, rails, &[&collect, &spread], &across);
    let canonical = is_aligned(grouping) && collect.is_canonical() && across.is_canonical();
    let groups = if scattered { 1 } else { rails };
    let mut needs = Needs::default();
    let across = across.placed(1, 0, &mut needs);
    let collect = collect.placed(groups, 0, &mut needs);
    let spread = spread.placed(groups, collect.channels_end(groups), &mut needs);
    let grouping = grouping.clone();
    let size = (grouping.nranks(), rails * piece);
    let layout = Layered { grouping, rails, groups, piece, collect, across, spread };
    let schedule = compose("hier", Collective::AllReduce, size, layout, &needs).with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct Layered {
    grouping: Grouping,
    rails: u32,
    /// Components side by side in phases 1 and 3: one for each rail, or one for all.
    groups: u32,
    /// Parts per piece.
    piece: u32,
    collect: Kit,
    across: Kit,
    spread: Kit,
}

/// What a slot is for.
enum Phase {
    Collect(u32),
    Across,
    Spread(u32),
}

impl Layered {
    fn phase(&self, slot: u32) -> Phase {
        match slot {
            slot if slot < self.groups => Phase::Collect(slot),
            slot if slot == self.groups => Phase::Across,
            slot => Phase::Spread(slot - self.groups - 1),
        }
    }
}

impl Layout for Layered {
    fn slots(&self) -> u32 {
        2 * self.groups + 1
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { grouping, rails, groups, piece, collect, across, spread } = self;
        let (place, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        let on_rail = place < *rails;
        // The slot of phase 1 or 3 that has the own rail.
        let own = place % groups;
        Some(match self.phase(slot) {
            Phase::Collect(j) => {
                Part { in_place: false, ..collect.part((size, j), place, *piece, j) }
            }
            Phase::Across => {
                let node = grouping.node(rank);
                let part = across.part((grouping.nodes(), 0), node, *piece, 0);
                on_rail.then_some(Part { finishes: true, follows: [own..own + 1, 0..0], ..part })?
            }
            Phase::Spread(j) => {
                let before = if on_rail && own == j { *groups } else { j };
                let follows = [before..before + 1, 0..0];
                Part { follows, ..spread.part((size, j), place, *piece, j) }
            }
        })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        match self.phase(slot) {
            Phase::Across => {
                self.grouping.ranks_of(member)[self.grouping.local_rank(rank) as usize]
            }
            _ => self.grouping.ranks_of(self.grouping.node(rank))[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk {
        let rail = match self.phase(slot) {
            Phase::Collect(rail) | Phase::Spread(rail) => rail + at.block,
            Phase::Across => self.grouping.local_rank(rank),
        };
        let index = rail * self.piece + at.part;
        if at.input && slot < self.groups { Chunk::Input(index) } else { Chunk::Output(index) }
    }
}
