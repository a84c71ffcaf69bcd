//! Double binary tree broadcast: half of the vector is sent down one tree, the other half down
//! another, such that no rank but the root is an inner node of both.
//!
//! * steps: one per tree and rank, in two lanes
//! * bytes sent: `m` by the root, up to `m` by each of the others, which are inner nodes of at most
//!   one tree
//! * cost: `ceil(log2 n) (a + t b) + m b` for tiles of `t` bytes
//! * class: canonical (nothing is reduced)
//! * wins: mid-size and large vectors at many ranks, where the chain's `(n-1) a` is expensive
//! * source: P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast,
//!   reduction and scan", Parallel Computing 35 (2009), see [`crate::pattern::rooted_pair`]

use crate::pattern::binomial::{node, rank as at};
use crate::pattern::rooted_pair::tree;
use crate::pattern::tree::TreeNeighbours;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` down two complementary binary trees.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("tree", collective);
    }
    Schedule::new("tree", collective, nranks, 2, DoubleTree { nranks, root })
        .with_channels(2)
        .canonical()
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
        let to = children.into_iter().flatten().map(link);
        Step::new([parent.map_or(input(lane), link)], [output(lane)].into_iter().chain(to))
    }
}
