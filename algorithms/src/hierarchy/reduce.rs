//! Reduce: to the rails in each node, between the nodes on every rail, then the pieces to the root.
//!
//! The rails are those of the [all-reduce](super::all_reduce); on its own node the root carries one.
//!
//! * phase 1: in each node, piece `j` is reduced to the carrier of rail `j`, by a reduce for each or by one reduce-scatter. From the
//!   send buffer to scratch, since only the root has a receive buffer; there to that.
//! * phase 2: on each rail, a reduce to the root's node, in place; the reduction is finished here
//! * phase 3: on the root's node, the carriers' pieces are gathered to the root; with one rail there is nothing to do, since the root
//!   is its carrier
//!
//! * bytes between nodes, per rail: those of the inter-node algorithm for a vector of `m/R`
//! * cost: `T_reduce(s, m) + T_reduce(N, m/R) + T_gather(R, m/R)`, the phases of different tiles overlapping but for phase 1 of a
//!   carrier, which waits until its piece of the former tile is passed on
//! * scratch: that of the components, a piece, and a chunk for each lane of phase 1
//! * channels: `R c_1 + c_3` within a node, `c_2` between nodes
//! * class: canonical if the components are and every node is an aligned subtree of the canonical tree, else fast

use super::components::{Kit, Source, common_parts, detail, is_aligned, is_even, named};
use super::compose::{At, Guard, Layout, Needs, Part, compose};
use super::rails::Rails;
use crate::schedule::{Chunk, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Reduce to `root` over `rails` rails, with components from `intra` (reduce-scatter, or reduce) and `inter` (reduce). None if a component
/// is lacking, or there are no such rails.
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
    let scattered =
        all.then(|| Kit::new(intra, [(Collective::ReduceScatter, rails.rails)])).flatten();
    let (groups, collect) = match scattered {
        Some(kit) => (1, kit),
        None => {
            let reduces = rails.seats().map(|(size, root)| (Collective::Reduce { root }, size));
            (rails.rails, Kit::new(intra, reduces)?)
        }
    };
    let home = Collective::Reduce { root: rails.home() };
    let across = Kit::new(inter, [(home, grouping.nodes())])?;
    let gather = Collective::Gather { root: rails.root_rail() };
    let gather = Kit::new(&named(&["direct"]), [(gather, rails.rails)])?;
    let piece = common_parts([&collect, &across, &gather])?;
    let detail = detail(grouping, rails.rails, &[&collect], &across);
    let canonical = is_aligned(grouping) && collect.is_canonical() && across.is_canonical();
    let mut needs = Needs::default();
    let across = across.placed(1, 0, &mut needs);
    let collect = collect.placed(groups, 0, &mut needs);
    let gather = gather.placed(1, collect.channels_end(groups), &mut needs);
    let kept = needs.room(piece);
    let guards = needs.room(groups * collect.lanes());
    let size = (grouping.nranks(), rails.rails * piece);
    let collective = Collective::Reduce { root };
    let layout = Layered { rails, groups, piece, collect, across, gather, kept, guards };
    let schedule = compose("hier", collective, size, layout, &needs).with_detail(detail);
    Some(if canonical { schedule.canonical() } else { schedule })
}

struct Layered {
    rails: Rails,
    /// Components side by side in phase 1: one for each rail, or one for all.
    groups: u32,
    /// Parts per piece.
    piece: u32,
    collect: Kit,
    across: Kit,
    gather: Kit,
    /// The scratch where carriers keep their piece.
    kept: u32,
    guards: u32,
}

/// Slots: phase 1 of each group, phase 2, phase 3.
impl Layout for Layered {
    fn slots(&self) -> u32 {
        self.groups + 2
    }

    fn part(&self, rank: Rank, slot: u32) -> Option<Part<'_>> {
        let Self { rails, groups, piece, collect, across, gather, guards, .. } = self;
        let grouping = &rails.grouping;
        let node = grouping.node(rank);
        let after = |slot| [slot..slot + 1, 0..0];
        if slot < *groups {
            let size = grouping.size(node);
            let root = if *groups == rails.rails { rails.place(node, slot) } else { 0 };
            let part = collect.part((size, root), grouping.local_rank(rank), *piece, slot);
            let guard = Guard {
                until: *groups..groups + 2,
                read: Chunk::Input(0),
                write: guards + slot * collect.lanes(),
            };
            let guard = (rank != rails.root).then_some(guard);
            return Some(Part { in_place: false, guard, ..part });
        }
        let rail = rails.rail(rank)?;
        if slot == *groups {
            let part = across.part((grouping.nodes(), rails.home()), node, *piece, 0);
            return Some(Part { finishes: true, follows: after(rail % groups), ..part });
        }
        let gathers = rails.rails > 1 && node == rails.home();
        let part = || gather.part((rails.rails, rails.root_rail()), rail, *piece, 0);
        gathers.then(|| Part { follows: after(*groups), ..part() })
    }

    fn member(&self, rank: Rank, slot: u32, member: u32) -> Rank {
        let grouping = &self.rails.grouping;
        let node = grouping.node(rank);
        if slot < self.groups {
            grouping.ranks_of(node)[member as usize]
        } else if slot == self.groups {
            self.rails.carrier(member, self.own_rail(rank))
        } else {
            self.rails.carrier(node, member)
        }
    }

    fn chunk(&self, rank: Rank, slot: u32, at: At) -> Chunk {
        if slot < self.groups && at.input {
            return Chunk::Input((slot + at.block) * self.piece + at.part);
        }
        if rank != self.rails.root {
            return Chunk::Scratch(self.kept + at.part);
        }
        let rail = if slot <= self.groups { self.own_rail(rank) } else { at.block };
        Chunk::Output(rail * self.piece + at.part)
    }
}

impl Layered {
    fn own_rail(&self, rank: Rank) -> u32 {
        self.rails.rail(rank).expect("only carriers are in phases 2 and 3")
    }
}
