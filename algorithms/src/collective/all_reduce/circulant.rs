//! Circulant all-reduce: a reduce-scatter in `ceil(log2 n)` rounds and an all-gather in as many,
//! with the least data, at every rank count. See [`crate::pattern::circulant`].
//!
//! * steps: per rank `n/2` sends, `n-1` folds, `n-1` sends and `n-1` receives; a lane for each
//!   round and kind
//! * bytes sent per rank: `2 (n-1)/n m`
//! * cost: `2 ceil(log2 n) a + 2 (n-1)/n m b + (n-1)/n m g`
//! * credits: 1; no scratch, since partial sums are kept in the output
//! * class: fast. The tree of part `c` is the same for all parts up to rotation.
//! * wins: mid-size and large vectors at many ranks where the rank count is not a power of two
//! * source: see the pattern

use crate::collective::all_gather::circulant::Spread;
use crate::collective::reduce_scatter::circulant::Folds;
use crate::pattern::circulant::Circulant;
use crate::pattern::ring::after;
use crate::schedule::operand::{output, peer};
use crate::schedule::{After, Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over the circulant graph.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("circulant", Collective::AllReduce);
    }
    let pattern = Circulant { nranks };
    let last = pattern.rounds();
    let own = After { lane: last, step: 0 };
    let spread = Spread { pattern, first_lane: last + 1, channel: SPREAD, own };
    let program = Reduce { folds: Folds { pattern }, spread };
    Schedule::new("circulant", Collective::AllReduce, nranks, nranks, program).with_channels(2)
}

/// Channel of the results; contributions are on channel 0.
const SPREAD: Channel = 1;

struct Reduce {
    folds: Folds,
    spread: Spread,
}

impl Program for Reduce {
    fn lanes(&self, _: Rank) -> u32 {
        self.spread.first_lane + self.spread.lanes()
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        if lane < self.spread.first_lane { self.folds.steps(lane) } else { self.spread.steps(lane) }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let Self { folds, spread } = self;
        let partial = |offset| output(after(rank, offset, folds.pattern.nranks));
        if lane < spread.own.lane {
            folds.step(rank, lane, index, partial)
        } else if lane == spread.own.lane {
            let outputs = [output(rank), peer(spread.first(rank), SPREAD)];
            folds.last(rank, partial, outputs)
        } else {
            spread.step(rank, lane, index)
        }
    }
}
