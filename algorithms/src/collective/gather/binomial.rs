//! Binomial gather: every rank passes its own block and those of its subtree up a binomial tree.
//!
//! * steps: one for each block of the rank's subtree, itself included; `n` at the root
//! * bytes sent per rank: the blocks of its subtree, `m` to `n/2 m` for blocks of `m` bytes; the
//!   root receives `(n-1) m`
//! * cost: `ceil(log2 n) a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: small blocks at many ranks, where the root would need too many links or messages are
//!   expensive
//! * source: folklore; R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective
//!   Communication Operations in MPICH", IJHPCA 19 (2005), section 3
//!
//! What MPI libraries aggregate in one message per child is here sent as several messages that
//! follow each other on one link. A rank passes them on as they arrive, nearest child first, and
//! needs no scratch.

use crate::pattern::binomial::{node, parent, rank as at, size, toward};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Gather to `root` up a binomial tree.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Gather { root };
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

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let Self { nranks, root } = *self;
        let own = node(rank, root, nranks);
        let link = |node| peer(at(node, root, nranks), 0);
        let block = own + index;
        let from = if block == own { input(0) } else { link(toward(own, block)) };
        let to = if own == 0 { output(at(block, root, nranks)) } else { link(parent(own)) };
        Step::new([from], [to])
    }
}
