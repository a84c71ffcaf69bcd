//! Chain reduce: every rank adds its vector to what it receives from the rank before it and sends
//! the sum on, tile by tile.
//!
//! * steps: one per rank
//! * bytes sent per rank: `m`, the minimum; none by the root
//! * cost: `(n-1) (a + t b + t g) + m b + m g` for tiles of `t` bytes
//! * class: fast. The ranks after the root come first, the root last: one chain.
//! * wins: large vectors at few ranks, and where links between neighbours are faster than others
//! * source: folklore; the ring reduce of NCCL

use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` along the ranks after it.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("chain", collective);
    }
    Schedule::new("chain", collective, nranks, 1, Chain { nranks, root })
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
        let previous = before(rank, 1, self.nranks);
        let from = (previous != self.root).then_some(peer(previous, 0));
        let inputs = from.into_iter().chain([input(0)]);
        if rank == self.root {
            return Step::new(inputs, [output(0)]).finishing();
        }
        Step::new(inputs, [peer(after(rank, 1, self.nranks), 0)])
    }
}
