//! Direct reduce: every rank sends its vector to the root, which reduces all of them in one pass.
//!
//! * steps: one per rank, `ceil(n/8) + …` folds at the root
//! * bytes sent per rank: `m`; the root receives `(n-1) m`
//! * cost: `a + (n-1) m b + (n-1) m g`
//! * class: canonical
//! * wins: few ranks with direct links

use crate::pattern::fan::{FanIn, FanInInputs};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` directly from all others.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("direct", collective);
    }
    let program = Direct { nranks, root };
    Schedule::new("direct", collective, nranks, 1, program)
        .with_scratch(program.fan_in().results())
        .canonical()
}

#[derive(Clone, Copy)]
struct Direct {
    nranks: u32,
    root: Rank,
}

impl Direct {
    const fn fan_in(self) -> FanIn {
        FanIn { leaves: self.nranks }
    }
}

impl Program for Direct {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        if rank == self.root { self.fan_in().steps() } else { 1 }
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        if rank != self.root {
            return Step::new([input(0)], [peer(self.root, 0)]);
        }
        let fold = self.fan_in().step(index);
        let target = fold.result.map_or(output(0), scratch);
        let step = match fold.inputs {
            FanInInputs::Leaves(ranks) => {
                let leaf = |r| if r == rank { input(0) } else { peer(r, 0) };
                Step::new(ranks.map(leaf), [target])
            }
            FanInInputs::Results(results) => Step::new(results.map(scratch), [target]),
        };
        if fold.result.is_none() { step.finishing() } else { step }
    }
}
