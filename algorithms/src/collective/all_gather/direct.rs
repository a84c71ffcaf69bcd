//! Direct all-gather: every rank sends its block to all others.
//!
//! * steps: `ceil((n-1)/8)` sends in one lane, `n-1` receives in another
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes
//! * cost: `a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: few ranks with direct links

use crate::pattern::fan::FanOut;
use crate::pattern::ring::{after, before};
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather by direct messages between all ranks.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("direct", Collective::AllGather);
    }
    Schedule::new("direct", Collective::AllGather, nranks, 1, Direct { nranks }).canonical()
}

struct Direct {
    nranks: u32,
}

impl Direct {
    /// The rank's own output is one of the outputs of the first step.
    const fn fan_out(&self) -> FanOut {
        FanOut { targets: self.nranks - 1, first: MAX_FAN as u32 - 1 }
    }
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        if lane == 0 { self.fan_out().steps() } else { self.nranks - 1 }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == 1 {
            let from = before(rank, index + 1, self.nranks);
            return Step::new([peer(from, 0)], [output(from)]);
        }
        let to = self.fan_out().step(index).map(|i| peer(after(rank, i + 1, self.nranks), 0));
        if index == 0 {
            Step::new([input(0)], [output(rank)].into_iter().chain(to))
        } else {
            Step::new([input(0)], to)
        }
    }
}
