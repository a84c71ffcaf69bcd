//! Hierarchies: schedules for several nodes, composed of schedules within nodes and between nodes.
//!
//! Any schedule can be a component, over nodes of any sizes whose ranks are numbered in any way;
//! see `docs/schedule.md`. `compose.rs` explains why a composition of proved schedules is right;
//! each composition is proved before it runs all the same.
//!
//! [`schedule`] composes given components; [`all`] are the named hierarchies that the tuner chooses
//! from.

pub mod all_gather;
pub mod all_reduce;
pub mod all_to_all;
pub mod broadcast;
pub mod channels;
mod columns;
mod components;
mod compose;
mod rails;
pub mod reduce;
pub mod reduce_scatter;
mod rooted;
mod table;

pub use components::{ComponentSource, named};
pub use table::{FAMILY, Hierarchy, all, hierarchies};

use crate::schedule::Schedule;
use crate::topology::Grouping;
use crate::types::Collective;

/// The hierarchy for `collective` over `grouping`, with components from `intra` within nodes and
/// from `inter` between them. `rails` is the number of ranks of a node that exchange with other
/// nodes; all-gather, reduce-scatter and all-to-all use all ranks and ignore it.
///
/// None if there is no such hierarchy: a component is lacking, the smallest node has fewer ranks
/// than rails, the nodes of an all-to-all differ in size, or the collective is a gather or a
/// scatter, which would gain nothing.
pub fn schedule(
    collective: Collective,
    grouping: &Grouping,
    rails: u32,
    intra: ComponentSource<'_>,
    inter: ComponentSource<'_>,
) -> Option<Schedule> {
    match collective {
        Collective::AllReduce => all_reduce::schedule(grouping, rails, intra, inter),
        Collective::Reduce { root } => reduce::schedule(grouping, root, rails, intra, inter),
        Collective::Broadcast { root } => broadcast::schedule(grouping, root, rails, intra, inter),
        Collective::AllGather => all_gather::schedule(grouping, intra, inter),
        Collective::ReduceScatter => reduce_scatter::schedule(grouping, intra, inter),
        Collective::AllToAll => all_to_all::schedule(grouping, intra, inter),
        Collective::Gather { .. } | Collective::Scatter { .. } => None,
    }
}
