//! Reduce-scatter by halving, in canonical order: aligned blocks of ranks join, nearest first, and
//! with every join a rank holds half as many partial sums. For any rank count, see
//! [`crate::pattern::halving`].
//!
//! * steps: per rank `n/2` sends in lane 0 and `n-1` folds, those of each join in a lane; a fold
//!   whose result is given away in the next join sends it straight on. At other rank counts than
//!   powers of two ranks differ: `n-1` messages per rank on average.
//! * bytes sent per rank: `(n-1)/n m`
//! * cost: `ceil(log2 n) a + (n-1)/n m b + (n-1)/n m g`
//! * credits: 1. All lanes handle their chunks in ascending order, so the lowest unfinished chunk
//!   can always proceed.
//! * scratch: `ceil(n/4) - 1` chunks, up to `ceil(n/2) - 1` at other rank counts than powers of two
//! * class: canonical
//! * wins: mid-size vectors at many ranks that need the canonical bits; it avoids the ring's
//!   `(n-1) a`, and each pair of ranks is a link of one join only
//! * source: see the pattern
//!
//! Lane 1 makes the first folds and, as its last step, the fold that completes the rank's own
//! block. That fold waits for the lanes between, which read what lane 1 wrote to scratch, so that
//! the first folds of the next tile do not overwrite it too early.

use crate::collective::reduce_scatter::closing::Closing;
use crate::pattern::halving::{BlockJoin, joins};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Channel, Operand, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter over blocks of ranks that join.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("halving", Collective::ReduceScatter);
    }
    with_closing(nranks, Closing::WIDTH)
}

fn with_closing(nranks: u32, width: u32) -> Schedule {
    let program = Halving { folds: Folds { nranks }, width };
    Schedule::new("halving", Collective::ReduceScatter, nranks, 1, program)
        .with_scratch(program.scratch())
        .canonical()
}

/// The sends and folds that halving begins with: lane 0 sends, lane `j` makes the folds of the
/// rank's `j`th join.
#[derive(Clone, Copy)]
pub(in crate::collective) struct Folds {
    pub(in crate::collective) nranks: u32,
}

impl Folds {
    const CHANNEL: Channel = 0;

    /// How many joins `rank` takes part in.
    pub(in crate::collective) fn joins(self, rank: Rank) -> u32 {
        joins(rank, self.nranks).count() as u32
    }

    /// The `j`th join of `rank`, counted from 1.
    fn join(self, rank: Rank, j: u32) -> BlockJoin {
        joins(rank, self.nranks).nth(j as usize - 1).expect("a lane per join")
    }

    pub(in crate::collective) fn steps(self, rank: Rank, lane: u32) -> u32 {
        match lane {
            0 => self.join(rank, 1).lost(),
            j => self.join(rank, j).after.count(),
        }
    }

    /// A step of any lane except that of the last join. `partial` gives the operand that holds the
    /// partial sum of a chunk.
    pub(in crate::collective) fn step(
        self,
        rank: Rank,
        lane: u32,
        index: u32,
        partial: impl Fn(u32) -> Operand,
    ) -> Step {
        let next = self.join(rank, lane + 1);
        let to = |chunk| peer(next.peer(chunk), Self::CHANNEL);
        if lane == 0 {
            let chunk = next.lost_chunk(index);
            return Step::new([input(chunk)], [to(chunk)]);
        }
        let chunk = next.before.chunk(index);
        let kept = next.after.contains(chunk);
        self.fold(rank, lane, chunk, &partial, [if kept { partial(chunk) } else { to(chunk) }])
    }

    /// The fold of the last join, which completes the rank's own chunk, without its dependencies.
    pub(in crate::collective) fn last(
        self,
        rank: Rank,
        partial: impl Fn(u32) -> Operand,
        outputs: impl IntoIterator<Item = Operand>,
    ) -> Step {
        self.fold(rank, self.joins(rank), rank, &partial, outputs).finishing()
    }

    fn fold(
        self,
        rank: Rank,
        j: u32,
        chunk: u32,
        partial: &impl Fn(u32) -> Operand,
        outputs: impl IntoIterator<Item = Operand>,
    ) -> Step {
        let join = self.join(rank, j);
        let theirs = peer(join.peer(chunk), Self::CHANNEL);
        let own = if j == 1 { input(chunk) } else { partial(chunk) };
        let inputs = if join.sibling_is_lower { [theirs, own] } else { [own, theirs] };
        let step = Step::new(inputs, outputs);
        if j == 1 { step } else { step.after(j - 1, join.before.index(chunk)) }
    }
}

#[derive(Clone, Copy)]
struct Halving {
    folds: Folds,
    width: u32,
}

impl Halving {
    /// The largest number of scratch chunks that a rank needs. Ranks with a sibling in the first
    /// two rounds differ only by their position among four; the others are among the last three.
    fn scratch(self) -> u32 {
        let n = self.folds.nranks;
        let kept = |rank| match self.folds.joins(rank) {
            0..=2 => 0,
            _ => self.folds.join(rank, 2).after.count() - 1,
        };
        (0..n.min(4)).chain(n.saturating_sub(3)..n).map(kept).max().unwrap_or(0)
    }

    /// The partial sum of the rank's own chunk is in the output; others that are kept beyond the
    /// second join are in scratch.
    fn partial(self, rank: Rank, chunk: u32) -> Operand {
        if chunk == rank {
            return output(0);
        }
        let index = self.folds.join(rank, 2).after.index(chunk);
        scratch(index - u32::from(chunk > rank))
    }

    /// The lanes that read what lane 1 wrote to scratch.
    fn closing(self, rank: Rank) -> Closing {
        Closing { first: 2, end: self.folds.joins(rank), width: self.width }
    }
}

impl Program for Halving {
    fn lanes(&self, rank: Rank) -> u32 {
        self.folds.joins(rank).max(2)
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        let completes = lane == 1 && self.folds.joins(rank) > 1;
        self.folds.steps(rank, lane) + u32::from(completes)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let partial = |chunk| self.partial(rank, chunk);
        let last = |lane| self.steps(rank, lane) - 1;
        if lane == 1 && index == last(1) {
            let mut step = self.folds.last(rank, partial, [output(0)]);
            step.after = [].into_iter().collect();
            return self.closing(rank).close(step, last);
        }
        let step = self.folds.step(rank, lane, index, partial);
        if lane > 1 && index == last(lane) {
            return self.closing(rank).pass_on(lane, step, last);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::prove;

    #[test]
    fn scratch_is_what_is_used() {
        for n in 2..140 {
            let schedule = schedule(n);
            let steps = (0..n).flat_map(|r| (0..schedule.lanes(r)).map(move |l| (r, l)));
            let used = steps
                .flat_map(|(r, l)| schedule.lane(r, l).collect::<Vec<_>>())
                .flat_map(|s| s.outputs.to_vec())
                .filter_map(|o| match o {
                    Operand::Local(crate::schedule::Chunk::Scratch(i)) => Some(i + 1),
                    _ => None,
                });
            assert_eq!(used.max().unwrap_or(0), schedule.scratch, "{n} ranks");
            assert!(schedule.scratch < n.div_ceil(if n.is_power_of_two() { 4 } else { 2 }));
        }
    }

    #[test]
    fn tiles_are_closed_however_many_lanes_a_step_can_name() {
        for width in 2..4 {
            for n in (9..24).chain([33, 63, 64, 67]) {
                prove(with_closing(n, width)).unwrap_or_else(|wrong| panic!("{wrong}"));
            }
        }
    }
}
