//! Two-shot all-reduce: the vector is cut into `n` parts; rank `r` receives part `r` of all ranks,
//! reduces it in one pass and sends the result to all in the same pass.
//!
//! * steps: `n-1` sends, `ceil(n/8) + …` folds, `n-1` receives per rank, in three lanes, so that
//!   sending, folding and receiving of different tiles overlap
//! * bytes sent per rank: `2 (n-1)/n m`, to `n-1` peers at once
//! * cost: `2 a + 2 (n-1)/n m b + (n-1)/n m g`
//! * class: canonical
//! * wins: mid-size and large vectors where every pair has a direct link: shared memory, NVLink
//! * source: folklore (reduce-scatter and all-gather by direct exchange, as in R. Thakur, R.
//!   Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA
//!   19 (2005), section 4.2); the name is from TensorRT-LLM.

use crate::pattern::fan::{FanIn, FanInInputs, FanOut};
use crate::pattern::ring::{after, before};
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce by direct reduce-scatter and all-gather.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("twoshot", Collective::AllReduce);
    }
    let program = TwoShot { nranks };
    Schedule::new("twoshot", Collective::AllReduce, nranks, nranks, program)
        .with_scratch(program.fan_in().results())
        .with_channels(2)
        .canonical()
}

/// Channel of the contributions.
const COLLECT: Channel = 0;
/// Channel of the results.
const SPREAD: Channel = 1;

#[derive(Clone, Copy)]
struct TwoShot {
    nranks: u32,
}

impl TwoShot {
    const fn fan_in(self) -> FanIn {
        FanIn { leaves: self.nranks }
    }

    /// The result goes to its owner's output and to all peers.
    const fn fan_out(self) -> FanOut {
        FanOut { targets: self.nranks - 1, first: MAX_FAN as u32 - 1 }
    }
}

impl Program for TwoShot {
    fn lanes(&self, _: Rank) -> u32 {
        3
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        match lane {
            1 => self.fan_in().steps() + self.fan_out().steps() - 1,
            _ => self.nranks - 1,
        }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        match lane {
            0 => {
                let owner = after(rank, index + 1, self.nranks);
                Step::new([input(owner)], [peer(owner, COLLECT)])
            }
            1 => self.fold(rank, index),
            _ => {
                let owner = before(rank, index + 1, self.nranks);
                Step::new([peer(owner, SPREAD)], [output(owner)])
            }
        }
    }
}

impl TwoShot {
    fn fold(&self, rank: Rank, index: u32) -> Step {
        let folds = self.fan_in().steps();
        let spread = |i| {
            let targets = self.fan_out().step(i);
            targets.map(move |t| peer(after(rank, t + 1, self.nranks), SPREAD))
        };
        if index >= folds {
            return Step::new([output(rank)], spread(index - folds + 1));
        }
        let fold = self.fan_in().step(index);
        let mut step = match fold.inputs {
            FanInInputs::Leaves(ranks) => {
                let leaf = |r| if r == rank { input(rank) } else { peer(r, COLLECT) };
                Step::new(ranks.map(leaf), [])
            }
            FanInInputs::Results(results) => Step::new(results.map(scratch), []),
        };
        match fold.result {
            Some(i) => step.outputs.push(scratch(i)),
            None => {
                step.outputs = [output(rank)].into_iter().chain(spread(0)).collect();
                step.finish = true;
            }
        }
        step
    }
}
