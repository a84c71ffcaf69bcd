//! Recursive doubling: in round `k` aligned blocks of `2^k` ranks exchange what they have reduced
//! so far.
//!
//! * steps: `1 + ceil(log2 n)` per rank, one lane; at other rank counts than powers of two, ranks
//!   of the last block need more steps to serve the others
//! * bytes sent per rank: `ceil(log2 n) m` (at other rank counts up to `n m` in the worst case, for
//!   one rank of `2^k + 1`)
//! * cost: `ceil(log2 n) (a + m b + m g)` at powers of two
//! * class: canonical, at every rank count: instead of folding surplus ranks in first, each member
//!   of a short last block serves several receivers, see [`crate::pattern::butterfly`]
//! * wins: small vectors at more than a few ranks
//! * source: R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication
//!   Operations in MPICH", IJHPCA 19 (2005); the treatment of other rank counts is our own.
//!
//! The value of round `k` is in scratch chunk `k`, so that a value that a slow partner still reads
//! is never overwritten within a tile.

use crate::pattern::butterfly::{ButterflyRound, round, rounds};
use crate::pattern::fan::FanOut;
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce by recursive doubling over aligned blocks.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("doubling", Collective::AllReduce);
    }
    Schedule::new("doubling", Collective::AllReduce, nranks, 1, Doubling { nranks })
        .with_scratch(rounds(nranks))
        .canonical()
}

struct Doubling {
    nranks: u32,
}

/// The steps that make the value with which a rank enters a round. Stage 0 makes it from the input,
/// each later stage from the exchange of the round before. The value is kept for the round and sent
/// to the partners of that round.
#[derive(Clone, Copy)]
struct RoundStage {
    /// The exchange that makes the value; None for the first stage.
    exchange: Option<(u32, ButterflyRound)>,
    /// The round that the value is for; None for the last stage, whose value is the result.
    next: Option<(u32, ButterflyRound)>,
}

impl Doubling {
    fn stages(&self, rank: Rank) -> impl Iterator<Item = RoundStage> + '_ {
        let active = move || {
            (0..rounds(self.nranks)).filter_map(move |k| Some((k, round(k, rank, self.nranks)?)))
        };
        let made = std::iter::once(None).chain(active().map(Some));
        let next = active().map(Some).chain([None]);
        made.zip(next).map(|(exchange, next)| RoundStage { exchange, next })
    }
}

impl RoundStage {
    fn fan_out(self) -> FanOut {
        let targets = self.next.map_or(0, |(_, r)| r.targets);
        FanOut { targets, first: MAX_FAN as u32 - 1 }
    }

    /// Step `index` of the stage; `earlier` is the operand that holds the value of the stage
    /// before.
    fn step(self, index: u32, earlier: Option<u32>) -> Step {
        let kept: Operand = self.next.map_or(output(0), |(k, _)| scratch(k));
        let sends =
            self.fan_out().step(index).filter_map(|i| Some(peer(self.next?.1.target(i), 0)));
        if index > 0 {
            return Step::new([kept], sends);
        }
        let outputs = [kept].into_iter().chain(sends);
        let mut step = match (self.exchange, earlier) {
            (Some((_, round)), Some(own)) => {
                let (own, theirs) = (scratch(own), peer(round.source, 0));
                let inputs = if round.sibling_is_lower { [theirs, own] } else { [own, theirs] };
                Step::new(inputs, outputs)
            }
            _ => Step::new([input(0)], outputs),
        };
        step.finish = self.next.is_none();
        step
    }
}

impl Program for Doubling {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        self.stages(rank).map(|s| s.fan_out().steps()).sum()
    }

    fn step(&self, rank: Rank, _: u32, mut index: u32) -> Step {
        let mut earlier = None;
        for stage in self.stages(rank) {
            let steps = stage.fan_out().steps();
            if index < steps {
                return stage.step(index, earlier);
            }
            index -= steps;
            earlier = stage.next.map(|(k, _)| k);
        }
        unreachable!("index is below steps()")
    }
}
