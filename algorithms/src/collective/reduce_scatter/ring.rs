//! Ring reduce-scatter: the partial sum of each block travels once around the ring, from the rank
//! after its owner to the owner.
//!
//! * steps: `n` per rank, one lane
//! * bytes sent per rank: `(n-1)/n m`
//! * cost: `(n-1) a + (n-1)/n m b + (n-1)/n m g`
//! * credits: 2, as for the all-reduce over a ring; no scratch
//! * class: fast. Block `c` is reduced in the order `c+1, c+2, …, c`: a different chain for each
//!   block.
//! * wins: large vectors where links between neighbours are faster than others, or where more than
//!   two streams contend for a link
//! * source: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
//!   workstations", JPDC 69 (2009).

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter over a ring of `nranks` in rank order.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("ring", Collective::ReduceScatter);
    }
    Schedule::new("ring", Collective::ReduceScatter, nranks, 1, Ring { nranks }).with_credit(2)
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
        let own = input(before(rank, index + 1, n));
        let from = peer(before(rank, 1, n), 0);
        let to = peer(after(rank, 1, n), 0);
        match index {
            0 => Step::new([own], [to]),
            i if i < n - 1 => Step::new([from, own], [to]),
            _ => Step::new([from, own], [output(0)]).finishing(),
        }
    }
}
