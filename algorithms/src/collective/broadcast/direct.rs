//! Direct broadcast: the root sends to all others.
//!
//! * steps: `ceil((n-1)/8)` at the root, one elsewhere
//! * bytes sent: `(n-1) m` by the root
//! * cost: `a + (n-1) m b`; over shared memory the messages leave in one pass over the root's
//!   vector
//! * class: canonical (nothing is reduced)
//! * wins: few ranks with direct links

use crate::pattern::fan::FanOut;
use crate::pattern::ring::after;
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` directly to all others.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("direct", collective);
    }
    Schedule::new("direct", collective, nranks, 1, Direct { nranks, root }).canonical()
}

struct Direct {
    nranks: u32,
    root: Rank,
}

impl Direct {
    /// The root's own output is one of the outputs of the first step.
    const fn fan_out(&self) -> FanOut {
        FanOut { targets: self.nranks - 1, first: MAX_FAN as u32 - 1 }
    }
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        if rank == self.root { self.fan_out().steps() } else { 1 }
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        if rank != self.root {
            return Step::new([peer(self.root, 0)], [output(0)]);
        }
        let to = self.fan_out().step(index).map(|i| peer(after(rank, i + 1, self.nranks), 0));
        if index == 0 {
            Step::new([input(0)], [output(0)].into_iter().chain(to))
        } else {
            Step::new([input(0)], to)
        }
    }
}
