//! Reduce by parts: the vector is cut into `n-1` parts, one for each rank except the root. Each of
//! these ranks receives its part from all others, reduces it in one pass and sends the result to
//! the root. It is a reduce-scatter and a gather, both direct.
//!
//! * steps: `n-2` sends in one lane and `ceil(n/8) + …` folds in another; at the root `n-1` sends
//!   and as many receives
//! * bytes sent per rank: `m`
//! * cost: `2 a + 2 m b + m g`; tiles overlap, so that large vectors cost about `m b`
//! * scratch: that of the fold, none up to 8 ranks
//! * class: canonical
//! * wins: large vectors where every pair has a direct link: no rank receives the vector more than
//!   once, and all of them share the folding
//! * source: R. Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004, by
//!   direct exchange; the root reduces no part, since it receives the results of all others.

use crate::pattern::fan::{FanIn, FanInInputs};
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` by parts.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("scatter", collective);
    }
    let program = Parts { nranks, root };
    Schedule::new("scatter", collective, nranks, nranks - 1, program)
        .with_scratch(program.fan_in().results())
        .canonical()
}

/// Part `p` is reduced by the rank `p + 1` after the root.
#[derive(Clone, Copy)]
struct Parts {
    nranks: u32,
    root: Rank,
}

impl Parts {
    const fn fan_in(self) -> FanIn {
        FanIn { leaves: self.nranks }
    }

    fn holder(self, part: u32) -> Rank {
        after(self.root, part + 1, self.nranks)
    }

    /// The part of a rank that is not the root.
    fn part(self, rank: Rank) -> u32 {
        before(rank, self.root + 1, self.nranks)
    }

    fn fold(self, rank: Rank, index: u32) -> Step {
        let fold = self.fan_in().step(index);
        let target = fold.result.map_or(peer(self.root, 0), scratch);
        let step = match fold.inputs {
            FanInInputs::Leaves(ranks) => {
                let own = input(self.part(rank));
                Step::new(ranks.map(|r| if r == rank { own } else { peer(r, 0) }), [target])
            }
            FanInInputs::Results(results) => Step::new(results.map(scratch), [target]),
        };
        if fold.result.is_none() { step.finishing() } else { step }
    }
}

impl Program for Parts {
    fn lanes(&self, _: Rank) -> u32 {
        2
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        match lane {
            _ if rank == self.root => self.nranks - 1,
            0 => self.nranks - 2,
            _ => self.fan_in().steps(),
        }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        match lane {
            0 if rank == self.root => Step::new([input(index)], [peer(self.holder(index), 0)]),
            // In place, the result is written over the contribution.
            _ if rank == self.root => {
                Step::new([peer(self.holder(index), 0)], [output(index)]).after(0, index)
            }
            0 => {
                let part = after(self.part(rank), index + 1, self.nranks - 1);
                Step::new([input(part)], [peer(self.holder(part), 0)])
            }
            _ => self.fold(rank, index),
        }
    }
}
