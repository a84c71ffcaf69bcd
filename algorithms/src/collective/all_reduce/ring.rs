//! Ring all-reduce: the vector is cut into `n` parts; each part travels around the ring once to be
//! reduced, and its result once more.
//!
//! * steps: `2n - 1` per rank, one lane
//! * bytes sent per rank: `2 (n-1)/n m`
//! * cost: `2 (n-1) a + 2 (n-1)/n m b + (n-1)/n m g`
//! * credits: 2. With one, every rank would wait for its successor to receive what it sent before
//!   it could receive and pass on what it got.
//! * class: fast. Part `c` is reduced in the order `c, c+1, …, c-1`: a different chain for each
//!   part.
//! * wins: large vectors where links between neighbours are faster than others, or where more than
//!   two streams contend for a link
//! * source: P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
//!   workstations", JPDC 69 (2009).

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over a ring of `nranks` in rank order.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("ring", Collective::AllReduce);
    }
    Schedule::new("ring", Collective::AllReduce, nranks, nranks, Ring { nranks }).with_credit(2)
}

struct Ring {
    nranks: u32,
}

impl Program for Ring {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, _: Rank, _: u32) -> u32 {
        2 * self.nranks - 1
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let n = self.nranks;
        let part = before(rank, index, n);
        let from = peer(before(rank, 1, n), 0);
        let to = peer(after(rank, 1, n), 0);
        match index {
            0 => Step::new([input(part)], [to]),
            i if i < n - 1 => Step::new([from, input(part)], [to]),
            i if i == n - 1 => Step::new([from, input(part)], [output(part), to]).finishing(),
            i if i < 2 * n - 2 => Step::new([from], [output(part), to]),
            _ => Step::new([from], [output(part)]),
        }
    }
}
