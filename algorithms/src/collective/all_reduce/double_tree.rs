//! Double binary tree: half of the vector is reduced up one tree and the result sent down it, the
//! other half in another tree, such that no rank is an inner node of both.
//!
//! * steps: one up and one down per tree and rank, in four lanes (up and down phases of each tree
//!   are pipelined over tiles)
//! * bytes sent per rank: at most about `2 m` for an inner node, `m` for the others
//! * cost: `2 log2(n) (a + t b) + 2 m b + m g` for tiles of `t` bytes
//! * class: fast. Each half has one fixed in-order tree over the ranks.
//! * wins: mid-size vectors at many nodes, where the ring's `2 (n-1) a` is expensive
//! * source: P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast,
//!   reduction and scan", Parallel Computing 35 (2009).

use crate::pattern::tree::{TreeNeighbours, double};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over two complementary binary trees.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("tree", Collective::AllReduce);
    }
    Schedule::new("tree", Collective::AllReduce, nranks, 2, DoubleTree { nranks }).with_channels(2)
}

struct DoubleTree {
    nranks: u32,
}

/// Lane `2 t` goes up tree `t`, lane `2 t + 1` goes down it; both use channel `t`, in opposite
/// directions.
impl Program for DoubleTree {
    fn lanes(&self, _: Rank) -> u32 {
        4
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        let down = lane % 2 == 1;
        let root = double(lane / 2, rank, self.nranks).parent.is_none();
        // The root has no step in the lane down: its step in the lane up also sends the result.
        u32::from(!(root && down))
    }

    fn step(&self, rank: Rank, lane: u32, _: u32) -> Step {
        let tree = lane / 2;
        let TreeNeighbours { parent, children } = double(tree, rank, self.nranks);
        let link = |r: Rank| peer(r, tree as u16);
        let children = children.map(|c| c.map(link));
        let down = |from: Operand| {
            Step::new([from], [output(tree)].into_iter().chain(children.into_iter().flatten()))
        };
        let [low, high] = children;
        let inputs = [low, Some(input(tree)), high].into_iter().flatten();
        match parent {
            Some(parent) if lane.is_multiple_of(2) => Step::new(inputs, [link(parent)]),
            Some(parent) => down(link(parent)),
            None => {
                let outputs = [output(tree)].into_iter().chain(children.into_iter().flatten());
                Step::new(inputs, outputs).finishing()
            }
        }
    }
}
