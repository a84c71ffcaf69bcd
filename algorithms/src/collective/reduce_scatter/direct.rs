//! Direct reduce-scatter: every rank sends block `r` to rank `r`, which reduces all of them in one
//! pass.
//!
//! * steps: `n-1` sends in one lane, `ceil(n/8) + …` folds in another
//! * bytes sent per rank: `(n-1)/n m`
//! * cost: `a + (n-1)/n m b + (n-1)/n m g`
//! * class: canonical
//! * wins: where every pair has a direct link: shared memory, NVLink

use crate::pattern::fan::{FanIn, FanInInputs};
use crate::pattern::ring::after;
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter by direct messages between all ranks.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("direct", Collective::ReduceScatter);
    }
    let program = Direct { nranks };
    Schedule::new("direct", Collective::ReduceScatter, nranks, 1, program)
        .with_scratch(program.fan_in().results())
        .canonical()
}

#[derive(Clone, Copy)]
struct Direct {
    nranks: u32,
}

impl Direct {
    const fn fan_in(self) -> FanIn {
        FanIn { leaves: self.nranks }
    }
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        if lane == 0 { self.nranks - 1 } else { self.fan_in().steps() }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == 0 {
            let owner = after(rank, index + 1, self.nranks);
            return Step::new([input(owner)], [peer(owner, 0)]);
        }
        let fold = self.fan_in().step(index);
        let target = fold.result.map_or(output(0), scratch);
        let step = match fold.inputs {
            FanInInputs::Leaves(ranks) => {
                let leaf = |r| if r == rank { input(rank) } else { peer(r, 0) };
                Step::new(ranks.map(leaf), [target])
            }
            FanInInputs::Results(results) => Step::new(results.map(scratch), [target]),
        };
        if fold.result.is_none() { step.finishing() } else { step }
    }
}
