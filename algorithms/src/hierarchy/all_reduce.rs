//! All-reduce in three phases: reduce in each node, all-reduce between the nodes on every rail,
//! spread in each node.
//!
//! *Rail* `j` is local rank `j` of every node. There are `R` rails, at most as many as the smallest
//! node has ranks, and the vector is cut into `R` equal pieces; rail `j` carries piece `j`.
//!
//! * phase 1: in each node, piece `j` is reduced to local rank `j`: by `R` reduces side by side,
//!   or, where all nodes have `R` ranks and there is such a component, by one reduce-scatter. From
//!   the send buffer to the receive buffer.
//! * phase 2: on each rail the sums of the nodes are reduced to all nodes, in place in the receive
//!   buffer; the reduction is finished here
//! * phase 3: in each node, piece `j` is broadcast from local rank `j`, or all pieces are
//!   all-gathered; also in place
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`; the
//!   `R` rails are `R` network ports
//! * cost: `T_reduce(s, m) + T_all_reduce(N, m/R) + T_broadcast(s, m)` for `N` nodes of `s` ranks,
//!   the phases of different tiles overlapping: with direct reduce-scatter and all-gather and a
//!   ring, `2 a + 2 (s-1)/s m b + 2 (N-1) A + 2 (N-1)/N m/s B + …`, where capitals are those of the
//!   network
//! * scratch: that of the components, nothing between them
//! * channels: `R (c_1 + c_3)` within a node, `c_2` between nodes, on disjoint links: the larger of
//!   the two
//! * class: canonical if the components are and every node is an aligned subtree of the canonical
//!   tree, else fast
//! * wins: several nodes, and a network that is slower than what joins the ranks of a node

use super::components::{
    ComponentSet, ComponentSource, common_parts, detail, has_equal_nodes, is_aligned, node_sizes,
};
use super::compose::{ComponentChunk, ComponentLayout, RankComponent, ScheduleNeeds, compose};
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// All-reduce over `rails` rails, with components from `intra` (reduce-scatter and all-gather, or
/// reduce and broadcast) and `inter` (all-reduce). None if a component is lacking, or there are no
/// such rails.
pub fn schedule(
    grouping: &Grouping,
    rails: u32,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    if !(1..=grouping.smallest()).contains(&rails) {
        return None;
    }
    let across = ComponentSet::new(inter, [(Collective::AllReduce, grouping.nodes())])?;
    let all = has_equal_nodes(grouping) && rails == grouping.size(0);
    let scattered = all.then(|| {
        let set = |collective| ComponentSet::new(intra, [(collective, rails)]);
        Some((set(Collective::ReduceScatter)?, set(Collective::AllGather)?))
    });
    let (scattered, (collect, spread)) = match scattered.flatten() {
        Some(set) => (true, set),
        None => {
            let rooted_set = |collective: fn(Rank) -> Collective| {
                let rooted = move |size| (0..rails).map(move |root| (collective(root), size));
                ComponentSet::new(intra, node_sizes(grouping).flat_map(rooted))
            };
            let collect = rooted_set(|root| Collective::Reduce { root })?;
            (false, (collect, rooted_set(|root| Collective::Broadcast { root })?))
        }
    };
    let piece = common_parts([&collect, &across, &spread])?;
    let detail = detail(grouping, rails, &[&collect, &spread], &across);
    let canonical = is_aligned(grouping) && collect.is_canonical() && across.is_canonical();
    let groups = if scattered { 1 } else { rails };
    let mut needs = ScheduleNeeds::default();
    let across = across.placed(1, 0, &mut needs);
    let collect = collect.placed(groups, 0, &mut needs);
    let spread = spread.placed(groups, collect.channels_end(groups), &mut needs);
    let grouping = grouping.clone();
    let size = (grouping.nranks(), rails * piece);
    let layout = AllReduceLayout { grouping, rails, groups, piece, collect, across, spread };
    let schedule = compose("hier", Collective::AllReduce, size, layout, &needs).with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct AllReduceLayout {
    grouping: Grouping,
    rails: u32,
    /// Components side by side in phases 1 and 3: one for each rail, or one for all rails.
    groups: u32,
    /// Parts per piece.
    piece: u32,
    collect: ComponentSet,
    across: ComponentSet,
    spread: ComponentSet,
}

/// The phase that a slot belongs to.
enum AllReducePhase {
    Collect(u32),
    Across,
    Spread(u32),
}

impl AllReduceLayout {
    fn phase(&self, slot: u32) -> AllReducePhase {
        match slot {
            slot if slot < self.groups => AllReducePhase::Collect(slot),
            slot if slot == self.groups => AllReducePhase::Across,
            slot => AllReducePhase::Spread(slot - self.groups - 1),
        }
    }
}

impl ComponentLayout for AllReduceLayout {
    fn slots(&self) -> u32 {
        2 * self.groups + 1
    }

    fn component(&self, rank: Rank, slot: u32) -> Option<RankComponent<'_>> {
        let Self { grouping, rails, groups, piece, collect, across, spread } = self;
        let (local, size) = (grouping.local_rank(rank), grouping.size(grouping.node(rank)));
        let on_rail = local < *rails;
        // The group of phases 1 and 3 that has the rank's own rail.
        let own = local % groups;
        Some(match self.phase(slot) {
            AllReducePhase::Collect(j) => {
                RankComponent { in_place: false, ..collect.component((size, j), local, *piece, j) }
            }
            AllReducePhase::Across => {
                let node = grouping.node(rank);
                let component = across.component((grouping.nodes(), 0), node, *piece, 0);
                on_rail.then_some(RankComponent {
                    finishes: true,
                    follows: [own..own + 1, 0..0],
                    ..component
                })?
            }
            AllReducePhase::Spread(j) => {
                let before = if on_rail && own == j { *groups } else { j };
                let follows = [before..before + 1, 0..0];
                RankComponent { follows, ..spread.component((size, j), local, *piece, j) }
            }
        })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        match self.phase(slot) {
            AllReducePhase::Across => {
                self.grouping.ranks_of(member)[self.grouping.local_rank(rank) as usize]
            }
            _ => self.grouping.ranks_of(self.grouping.node(rank))[member as usize],
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, chunk: ComponentChunk) -> Chunk {
        let rail = match self.phase(slot) {
            AllReducePhase::Collect(rail) | AllReducePhase::Spread(rail) => rail + chunk.block,
            AllReducePhase::Across => self.grouping.local_rank(rank),
        };
        let index = rail * self.piece + chunk.part;
        if chunk.is_input && slot < self.groups {
            Chunk::Input(index)
        } else {
            Chunk::Output(index)
        }
    }
}
