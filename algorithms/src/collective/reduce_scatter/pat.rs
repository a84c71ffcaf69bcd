//! Reduce-scatter by parallel aggregated trees: the block of each rank is reduced up a binomial
//! tree, and the `n` trees are the same up to rotation. See [`crate::pattern::pat`].
//!
//! * steps: per rank one for each block, in up to five lanes by the level in the tree: fold the
//!   rank's own contribution and those of all children in one pass, and send the result (several
//!   passes above 7 children, which occurs above 128 ranks)
//! * bytes sent per rank: `(n-1)/n m`; half of them go to the nearest rank and one block to the
//!   farthest
//! * cost: `ceil(log2 n) a + (n-1)/n m b + (n-1)/n m g`; above 64 ranks the levels that share a
//!   lane make it `(4 + n/32) a`
//! * credits: 1
//! * scratch: none up to 128 ranks, one chunk beyond: partial sums wait in links, of which a rank
//!   has less than `4 log2(n)`, one message in each
//! * class: fast. The tree of block `c` is the same for all blocks up to rotation.
//! * wins: mid-size and large vectors at many ranks, since every byte is read once and written
//!   once, and links to far ranks carry little
//! * source: see the pattern

use crate::pattern::pat::{OffsetPart, Pat};
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter over rotated binomial trees.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("pat", Collective::ReduceScatter);
    }
    let pattern = Pat { nranks };
    Schedule::new("pat", Collective::ReduceScatter, nranks, 1, Trees { pattern })
        .with_channels(pattern.channels())
        .with_scratch(u32::from(nranks > 128))
}

struct Trees {
    pattern: Pat,
}

impl Program for Trees {
    fn lanes(&self, _: Rank) -> u32 {
        self.pattern.lanes()
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        self.pattern.steps(lane)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let pattern = self.pattern;
        let n = pattern.nranks;
        let OffsetPart { offset, from, to, first, last } =
            pattern.part(lane, pattern.steps(lane) - 1 - index);
        let sums = (from..to).map(|j| peer(before(rank, 1 << j, n), pattern.channel(offset)));
        // The parts come in descending order as well: the last one first.
        let own = if last { input(after(rank, offset, n)) } else { scratch(0) };
        let target = if !first {
            scratch(0)
        } else if offset == 0 {
            output(0)
        } else {
            let distance = pattern.distance(offset);
            peer(after(rank, distance, n), pattern.channel(offset - distance))
        };
        let step = Step::new([own].into_iter().chain(sums), [target]);
        if offset == 0 && first { step.finishing() } else { step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_the_same_at_a_hundred_thousand_ranks() {
        let n = 100_003;
        let schedule = schedule(n);
        assert_eq!(schedule.steps(7, 0), n / 2);
        let leaf = Step::new([input(7 + 3)], [peer(7 + 1, 0)]);
        assert_eq!(schedule.step(7, 0, n / 2 - 2), leaf);
        let end = schedule.step(7, 4, schedule.steps(7, 4) - 1);
        assert_eq!((end.outputs[0], end.finish), (output(0), true));
    }
}
