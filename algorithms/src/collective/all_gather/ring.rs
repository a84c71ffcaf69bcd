//! Ring all-gather: each block travels once around the ring.
//!
//! * steps: `n` per rank, one lane
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes
//! * cost: `(n-1) a + (n-1) m b`
//! * credits: 2, as for the all-reduce over a ring
//! * class: canonical (nothing is reduced)
//! * wins: large blocks where links between neighbours are faster than others, or where more than
//!   two streams contend for a link
//! * source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication
//!   Operations in MPICH", IJHPCA 19 (2005), section 4.1.

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over a ring of `nranks` in rank order.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("ring", Collective::AllGather);
    }
    Schedule::new("ring", Collective::AllGather, nranks, 1, Ring { nranks })
        .with_credit(2)
        .canonical()
}

struct Ring {
    nranks: u32,
}

impl Program for Ring {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, _: Rank, _: u32) -> u32 {
        self.nranks
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let n = self.nranks;
        let block = output(before(rank, index, n));
        let from = peer(before(rank, 1, n), 0);
        let to = peer(after(rank, 1, n), 0);
        match index {
            0 => Step::new([input(0)], [block, to]),
            i if i < n - 1 => Step::new([from], [block, to]),
            _ => Step::new([from], [block]),
        }
    }
}
