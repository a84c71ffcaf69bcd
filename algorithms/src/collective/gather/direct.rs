//! Direct gather: every rank sends its block to the root.
//!
//! * steps: one per rank, `n` at the root
//! * bytes sent per rank: `m` for blocks of `m` bytes; the root receives `(n-1) m`
//! * cost: `a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: large blocks, and ranks on one host

use crate::pattern::ring::after;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Gather to `root` directly from all others.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Gather { root };
    if nranks == 1 {
        return crate::collective::single_rank("direct", collective);
    }
    Schedule::new("direct", collective, nranks, 1, Direct { nranks, root }).canonical()
}

struct Direct {
    nranks: u32,
    root: Rank,
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        if rank == self.root { self.nranks } else { 1 }
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        if rank != self.root {
            return Step::new([input(0)], [peer(self.root, 0)]);
        }
        if index == 0 {
            return Step::new([input(0)], [output(rank)]);
        }
        let from = after(rank, index, self.nranks);
        Step::new([peer(from, 0)], [output(from)])
    }
}
