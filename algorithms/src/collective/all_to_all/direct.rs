//! Direct all-to-all: every rank sends block `r` to rank `r`; rank `r` begins with its successor,
//! so that no two senders start with the same receiver.
//!
//! * steps: one copy and `n-1` sends in one lane, `n-1` receives in another
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes, the minimum
//! * cost: `(n-1) a + (n-1) m b`, where the messages of a rank travel at the same time if links
//!   allow it
//! * class: canonical (nothing is reduced)
//! * wins: large blocks, and ranks on one host

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-to-all by direct messages between all ranks.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("direct", Collective::AllToAll);
    }
    Schedule::new("direct", Collective::AllToAll, nranks, 1, Direct { nranks }).canonical()
}

struct Direct {
    nranks: u32,
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        if lane == 0 { self.nranks } else { self.nranks - 1 }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == 1 {
            let from = before(rank, index + 1, self.nranks);
            return Step::new([peer(from, 0)], [output(from)]);
        }
        // The rank's own block is last, since peers wait for theirs.
        match index + 1 {
            distance if distance < self.nranks => {
                let to = after(rank, distance, self.nranks);
                Step::new([input(to)], [peer(to, 0)])
            }
            _ => Step::new([input(rank)], [output(rank)]),
        }
    }
}
