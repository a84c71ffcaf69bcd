//! Double binary tree reduce: half of the vector is reduced up one tree, the other half up another,
//! such that no rank but the root is an inner node of both.
//!
//! * steps: one per tree and rank, in two lanes
//! * bytes sent per rank: `m`, received about `m`; the root only receives
//! * cost: `ceil(log2 n) (a + t b + t g) + m b + m g` for tiles of `t` bytes
//! * class: fast. Each half has one fixed in-order tree over the ranks, counted from the root on.
//! * wins: mid-size and large vectors at many ranks, where the chain's `(n-1) a` is expensive
//! * source: P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast,
//!   reduction and scan", Parallel Computing 35 (2009), see [`crate::pattern::rooted_pair`]

use crate::pattern::binomial::{node, rank as at};
use crate::pattern::rooted_pair::tree;
use crate::pattern::tree::TreeNeighbours;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` up two complementary binary trees.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("tree", collective);
    }
    Schedule::new("tree", collective, nranks, 2, DoubleTree { nranks, root }).with_channels(2)
}

struct DoubleTree {
    nranks: u32,
    root: Rank,
}

/// Lane `t` is tree `t`, on channel `t`.
impl Program for DoubleTree {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, _: Rank, _: u32) -> u32 {
        1
    }

    fn step(&self, rank: Rank, lane: u32, _: u32) -> Step {
        let Self { nranks, root } = *self;
        let TreeNeighbours { parent, children } = tree(lane, node(rank, root, nranks), nranks);
        let link = |node| peer(at(node, root, nranks), lane as Channel);
        let [low, high] = children.map(|c| c.map(link));
        let inputs = [low, Some(input(lane)), high].into_iter().flatten();
        match parent {
            Some(parent) => Step::new(inputs, [link(parent)]),
            None => Step::new(inputs, [output(lane)]).finishing(),
        }
    }
}
