//! Binomial broadcast: ranks that have the vector send it on, first to far and then to nearer
//! ranks, so that the number of ranks that have it doubles in each round.
//!
//! * steps: one at each rank, and one more for every eight children beyond the first seven (from
//!   129 ranks on, near the root)
//! * bytes sent: `ceil(log2 n) m` by the root, less by others, none by half of the ranks
//! * cost: `ceil(log2 n) (a + m b)`; many tiles cost the root's `ceil(log2 n) m b` and the latency
//!   once
//! * class: canonical (nothing is reduced)
//! * wins: small vectors at more than a few ranks
//! * source: folklore; R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective
//!   Communication Operations in MPICH", IJHPCA 19 (2005), section 3
//!
//! The child with the largest subtree is served first. A rank receives the vector and sends it to
//! its children in the same pass.

use crate::pattern::binomial::{children, node, parent, rank as at};
use crate::pattern::fan::FanOut;
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` down a binomial tree.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("binomial", collective);
    }
    Schedule::new("binomial", collective, nranks, 1, Binomial { nranks, root }).canonical()
}

struct Binomial {
    nranks: u32,
    root: Rank,
}

impl Binomial {
    fn node(&self, rank: Rank) -> u32 {
        node(rank, self.root, self.nranks)
    }

    /// The rank's own output is one of the outputs of the first step.
    fn fan_out(&self, rank: Rank) -> FanOut {
        let targets = children(self.node(rank), self.nranks);
        FanOut { targets, first: MAX_FAN as u32 - 1 }
    }
}

impl Program for Binomial {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        self.fan_out(rank).steps()
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let Self { nranks, root } = *self;
        let node = self.node(rank);
        let last = children(node, nranks).wrapping_sub(1);
        let child = |i: u32| peer(at(node + (1 << (last - i)), root, nranks), 0);
        let to = self.fan_out(rank).step(index).map(child);
        if index > 0 {
            return Step::new([output(0)], to);
        }
        let from = if node == 0 { input(0) } else { peer(at(parent(node), root, nranks), 0) };
        Step::new([from], [output(0)].into_iter().chain(to))
    }
}
