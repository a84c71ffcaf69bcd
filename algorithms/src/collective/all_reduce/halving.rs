//! All-reduce by halving and doubling (Rabenseifner's algorithm), in canonical order and for any
//! rank count: a reduce-scatter over aligned blocks of ranks that join, nearest first, and an
//! all-gather over the same blocks in reverse order. See [`crate::pattern::halving`].
//!
//! * steps: per rank `n/2` sends, `n-1` folds, `n-1` sends and `n-1` receives on average; a lane
//!   for each join and kind
//! * bytes sent per rank: `2 (n-1)/n m` on average
//! * cost: `2 ceil(log2 n) a + 2 (n-1)/n m b + (n-1)/n m g`
//! * credits: 1, see the two halves; no scratch, since partial sums are kept in the output
//! * class: canonical
//! * wins: mid-size vectors at many ranks, and large ones that need the canonical bits where not
//!   every pair has a direct link
//! * source: R. Rabenseifner, "Optimization of Collective Reduction Operations", ICCS 2004; R.
//!   Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in
//!   MPICH", IJHPCA 19 (2005). They begin with the farthest rank; beginning with the nearest gives
//!   the canonical tree. The treatment of other rank counts is our own.

use crate::collective::all_gather::doubling::Spread;
use crate::collective::reduce_scatter::halving::Folds;
use crate::schedule::operand::{output, peer};
use crate::schedule::{After, Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over blocks of ranks that join and then separate.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("halving", Collective::AllReduce);
    }
    let program = Halving { folds: Folds { nranks } };
    Schedule::new("halving", Collective::AllReduce, nranks, nranks, program)
        .with_channels(2)
        .canonical()
}

/// Channel of the results; contributions are on channel 0.
const SPREAD: Channel = 1;

struct Halving {
    folds: Folds,
}

impl Halving {
    /// The lane that completes the rank's own chunk: the last of the lanes that fold.
    fn last(&self, rank: Rank) -> u32 {
        self.folds.joins(rank)
    }

    fn spread(&self, rank: Rank) -> Spread {
        let last = self.last(rank);
        Spread {
            nranks: self.folds.nranks,
            first_lane: last + 1,
            channel: SPREAD,
            own: After { lane: last, step: 0 },
        }
    }
}

impl Program for Halving {
    fn lanes(&self, rank: Rank) -> u32 {
        self.last(rank) + 1 + self.spread(rank).lanes(rank)
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        if lane <= self.last(rank) {
            self.folds.steps(rank, lane)
        } else {
            self.spread(rank).steps(rank, lane)
        }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let spread = self.spread(rank);
        if lane < self.last(rank) {
            self.folds.step(rank, lane, index, output)
        } else if lane == self.last(rank) {
            let first = peer(spread.first(rank), SPREAD);
            self.folds.last(rank, output, [output(rank), first])
        } else {
            spread.step(rank, lane, index)
        }
    }
}
