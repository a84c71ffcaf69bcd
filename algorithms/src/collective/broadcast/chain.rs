//! Chain broadcast: every rank receives the vector from the rank before it and sends it to the
//! next, tile by tile.
//!
//! * steps: one per rank
//! * bytes sent per rank: `m`, the minimum; none by the last
//! * cost: `(n-1) (a + t b) + m b` for tiles of `t` bytes
//! * class: canonical (nothing is reduced)
//! * wins: large vectors at few ranks, and where links between neighbours are faster than others
//! * source: folklore; the ring broadcast of NCCL

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` along the ranks after it.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("chain", collective);
    }
    Schedule::new("chain", collective, nranks, 1, Chain { nranks, root }).canonical()
}

struct Chain {
    nranks: u32,
    root: Rank,
}

impl Program for Chain {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, _: Rank, _: u32) -> u32 {
        1
    }

    fn step(&self, rank: Rank, _: u32, _: u32) -> Step {
        let from = if rank == self.root { input(0) } else { peer(before(rank, 1, self.nranks), 0) };
        let next = after(rank, 1, self.nranks);
        let to = (next != self.root).then_some(peer(next, 0));
        Step::new([from], [output(0)].into_iter().chain(to))
    }
}
