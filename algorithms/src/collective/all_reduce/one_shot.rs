//! One-shot all-reduce: every rank sends its whole vector to every other and reduces all of them
//! itself.
//!
//! * steps: `ceil((n-1)/8)` sends and `ceil(n/8) + …` folds per rank, one lane
//! * bytes sent per rank: `(n-1) m`
//! * cost: `a + (n-1) m b + (n-1) m g` (one port shared by all messages)
//! * class: canonical
//! * wins: vectors of a few cache lines; no other algorithm has the latency of a single message
//! * source: folklore; the name is from NVIDIA's TensorRT-LLM all-reduce kernels.
//!
//! The vector is first copied to scratch and sent from there: in place, a rank writes its result
//! while slower peers may still read its contribution, and no order of steps can prevent that.
//! Where links copy, the engine leaves out a scratch chunk that no step reads.

use crate::pattern::fan::{FanIn, FanInInputs, FanOut};
use crate::pattern::ring::after;
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce by direct exchange of whole vectors.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("oneshot", Collective::AllReduce);
    }
    let program = OneShot { nranks };
    Schedule::new("oneshot", Collective::AllReduce, nranks, 1, program)
        .with_scratch(1 + program.fan_in().results())
        .canonical()
}

#[derive(Clone, Copy)]
struct OneShot {
    nranks: u32,
}

impl OneShot {
    const fn fan_out(self) -> FanOut {
        FanOut { targets: self.nranks - 1, first: MAX_FAN as u32 - 1 }
    }

    const fn fan_in(self) -> FanIn {
        FanIn { leaves: self.nranks }
    }
}

impl Program for OneShot {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, _: Rank, _: u32) -> u32 {
        self.fan_out().steps() + self.fan_in().steps()
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let sends = self.fan_out().steps();
        if index < sends {
            let to = self.fan_out().step(index).map(|i| peer(after(rank, i + 1, self.nranks), 0));
            return if index == 0 {
                Step::new([input(0)], [scratch(0)].into_iter().chain(to))
            } else {
                Step::new([scratch(0)], to)
            };
        }
        let fold = self.fan_in().step(index - sends);
        let target = fold.result.map_or(output(0), |i| scratch(1 + i));
        let step = match fold.inputs {
            FanInInputs::Leaves(ranks) => {
                let leaf = |r| if r == rank { input(0) } else { peer(r, 0) };
                Step::new(ranks.map(leaf), [target])
            }
            FanInInputs::Results(results) => Step::new(results.map(|i| scratch(1 + i)), [target]),
        };
        if fold.result.is_none() { step.finishing() } else { step }
    }
}
