//! Circulant reduce-scatter: `ceil(log2 n)` rounds and the least data, at every rank count. See
//! [`crate::pattern::circulant`].
//!
//! * steps: per rank `n/2` sends in lane 0 and the `n-1` folds of round `k` in lane `k`, first
//!   those whose partial sums stay on the rank; the others send their result in the round that
//!   follows. The last offset of a round has no fold if the round before left an odd number of
//!   offsets.
//! * bytes sent per rank: `(n-1)/n m`
//! * cost: `ceil(log2 n) a + (n-1)/n m b + (n-1)/n m g`
//! * credits: 1
//! * scratch: `ceil(n/4) - 1` chunks
//! * class: fast. The tree of block `c` is the same for all blocks up to rotation.
//! * wins: mid-size vectors at many ranks, above all where the rank count is not a power of two
//! * source: see the pattern
//!
//! Lane 1 makes the folds of the first round and, as its last step, the fold of the last round.
//! That fold waits for the lanes between, which read what lane 1 wrote to scratch, so that the
//! first folds of the next tile do not overwrite it too early.

use crate::collective::reduce_scatter::closing::Closing;
use crate::pattern::circulant::Circulant;
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Channel, Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter over the circulant graph.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("circulant", Collective::ReduceScatter);
    }
    with_closing(nranks, Closing::WIDTH)
}

fn with_closing(nranks: u32, width: u32) -> Schedule {
    let pattern = Circulant { nranks };
    let program = Scatter { folds: Folds { pattern }, width };
    // The partial sums that are kept beyond the second round, except that of the rank's own block.
    let scratch = if pattern.rounds() > 2 { pattern.skip(2) - 1 } else { 0 };
    let schedule = Schedule::new("circulant", Collective::ReduceScatter, nranks, 1, program);
    schedule.with_scratch(scratch)
}

/// The sends and folds: lane 0 sends inputs, lane `k` makes the folds of round `k`.
#[derive(Clone, Copy)]
pub(in crate::collective) struct Folds {
    pub(in crate::collective) pattern: Circulant,
}

impl Folds {
    const CHANNEL: Channel = 0;

    pub(in crate::collective) fn steps(self, lane: u32) -> u32 {
        if lane == 0 { self.pattern.moved(1) } else { self.pattern.skip(lane) }
    }

    /// A step of any lane except that of the last round. `partial` gives the operand that holds the
    /// partial sum of an offset.
    pub(in crate::collective) fn step(
        self,
        rank: Rank,
        lane: u32,
        index: u32,
        partial: impl Fn(u32) -> Operand,
    ) -> Step {
        let n = self.pattern.nranks;
        let next = self.pattern.skip(lane + 1);
        let to = peer(after(rank, next, n), Self::CHANNEL);
        if lane == 0 {
            return Step::new([input(after(rank, next + index, n))], [to]);
        }
        self.fold(rank, lane, index, &partial, [if index < next { partial(index) } else { to }])
    }

    /// The fold of the last round, which completes the rank's own block, without its dependencies.
    pub(in crate::collective) fn last(
        self,
        rank: Rank,
        partial: impl Fn(u32) -> Operand,
        outputs: impl IntoIterator<Item = Operand>,
    ) -> Step {
        self.fold(rank, self.pattern.rounds(), 0, &partial, outputs).finishing()
    }

    fn fold(
        self,
        rank: Rank,
        k: u32,
        offset: u32,
        partial: &impl Fn(u32) -> Operand,
        outputs: impl IntoIterator<Item = Operand>,
    ) -> Step {
        let n = self.pattern.nranks;
        let theirs = peer(before(rank, self.pattern.skip(k), n), Self::CHANNEL);
        let theirs = (offset < self.pattern.moved(k)).then_some(theirs);
        let own = if k == 1 { input(after(rank, offset, n)) } else { partial(offset) };
        let step = Step::new([own].into_iter().chain(theirs), outputs);
        // The round before kept partial sums in its first steps; the order of this lane does the
        // rest.
        if k > 1 && offset == 0 { step.after(k - 1, self.pattern.skip(k) - 1) } else { step }
    }
}

#[derive(Clone, Copy)]
struct Scatter {
    folds: Folds,
    width: u32,
}

impl Scatter {
    /// The partial sum of the rank's own block is in the output; others that are kept beyond the
    /// second round are in scratch.
    fn partial(offset: u32) -> Operand {
        offset.checked_sub(1).map_or(output(0), scratch)
    }

    /// The lanes that read what lane 1 wrote to scratch.
    fn closing(self) -> Closing {
        Closing { first: 2, end: self.folds.pattern.rounds(), width: self.width }
    }

    /// If three offsets are left two rounds before the end, offset 1 is not folded any more. It
    /// goes directly to the last round, since the step that reads it must not lend scratch: the
    /// last fold waits for what is lent, and every rank would wait for the next one.
    fn skips_a_round(self, lane: u32) -> bool {
        lane > 0 && lane + 2 == self.folds.pattern.rounds() && self.folds.pattern.skip(lane) == 3
    }
}

impl Program for Scatter {
    fn lanes(&self, _: Rank) -> u32 {
        self.folds.pattern.rounds().max(2)
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        let pattern = self.folds.pattern;
        if lane > 1 && self.skips_a_round(lane - 1) {
            return 1;
        }
        self.folds.steps(lane) + u32::from(lane == 1 && pattern.rounds() > 1)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let last = |lane| self.steps(rank, lane) - 1;
        if lane == 1 && index == last(1) {
            let mut step = self.folds.last(rank, Self::partial, [output(0)]);
            step.after = [].into_iter().collect();
            return self.closing().close(step, last);
        }
        let mut step = self.folds.step(rank, lane, index, Self::partial);
        if index == 1 && self.skips_a_round(lane) {
            let to = peer(after(rank, 1, self.folds.pattern.nranks), Folds::CHANNEL);
            step.outputs = [to].into_iter().collect();
        }
        if lane > 1 && index == last(lane) {
            return self.closing().pass_on(lane, step, last);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::prove;

    #[test]
    fn tiles_are_closed_however_many_lanes_a_step_can_name() {
        for width in 2..4 {
            for n in (20..50).chain([63, 64, 65, 97, 129]) {
                prove(with_closing(n, width)).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
        }
    }

    #[test]
    fn a_step_costs_the_same_at_a_hundred_thousand_ranks() {
        let schedule = schedule(100_003);
        assert_eq!((schedule.lanes(7), schedule.scratch), (17, 25_000));
        let step = schedule.step(7, 16, 1);
        assert_eq!(step.inputs[1], peer(5, 0));
        assert_eq!(step.outputs[0], peer(8, 0));
    }
}
