//! Binomial scatter: every rank receives the blocks of its subtree from its parent, keeps its own
//! and passes on the others.
//!
//! * steps: one for each block of the rank's subtree, itself included; `n` at the root
//! * bytes sent per rank: the blocks of its subtree except its own, up to `n/2 m` for blocks of `m`
//!   bytes; `(n-1) m` by the root
//! * cost: `ceil(log2 n) a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: small blocks at many ranks, where the root would need too many links or messages are
//!   expensive
//! * source: folklore; R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective
//!   Communication Operations in MPICH", IJHPCA 19 (2005), section 3
//!
//! What MPI libraries aggregate in one message per child is here sent as several messages that
//! follow each other on one link: the farthest blocks first, a rank's own block last. A rank passes
//! them on as they arrive and needs no scratch.

use crate::pattern::binomial::{node, parent, rank as at, size, toward};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Scatter from `root` down a binomial tree.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Scatter { root };
    if nranks == 1 {
        return crate::collective::single_rank("binomial", collective);
    }
    Schedule::new("binomial", collective, nranks, 1, Binomial { nranks, root }).canonical()
}

struct Binomial {
    nranks: u32,
    root: Rank,
}

impl Program for Binomial {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        size(node(rank, self.root, self.nranks), self.nranks)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let Self { nranks, root } = *self;
        let own = node(rank, root, nranks);
        let link = |node| peer(at(node, root, nranks), 0);
        let block = own + self.steps(rank, lane) - 1 - index;
        let from = if own == 0 { input(at(block, root, nranks)) } else { link(parent(own)) };
        let to = if block == own { output(0) } else { link(toward(own, block)) };
        Step::new([from], [to])
    }
}
