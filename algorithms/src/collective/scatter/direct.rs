//! Direct scatter: the root sends each rank its block.
//!
//! * steps: `n` at the root, one elsewhere
//! * bytes sent: `(n-1) m` by the root, for blocks of `m` bytes
//! * cost: `a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: large blocks, and ranks on one host

use crate::pattern::ring::after;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Scatter from `root` directly to all others.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Scatter { root };
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
            return Step::new([peer(self.root, 0)], [output(0)]);
        }
        // The root's own block is last, since the others wait for theirs.
        if index + 1 == self.nranks {
            return Step::new([input(rank)], [output(0)]);
        }
        let to = after(rank, index + 1, self.nranks);
        Step::new([input(to)], [peer(to, 0)])
    }
}
