//! All-gather by parallel aggregated trees: Bruck's dimensions in reverse, for any number of ranks.
//!
//! Call *offset* `o` at rank `r` the block of rank `r - o` (all mod `n`). Offset 0 is the rank's own. Every other offset
//! arrives once, from the rank `2^k` below, where `2^k` is the lowest bit set in `o`: there it was offset
//! `o - 2^k`, which has fewer bits and only higher ones. So the block of each rank travels down a binomial tree, far
//! hops first, and the `n` trees are the same up to rotation.
//!
//! * steps: one lane per distance `2^k`, the farthest first, of `m_k = ceil((n - 2^k) / 2^(k+1))` sends and as many receives.
//!   Send `i` gives offset `i 2^(k+1)` to the rank `2^k` above, once the lane of that offset's own lowest bit has it; receive `i`
//!   takes offset `i 2^(k+1) + 2^k` from the rank `2^k` below. What the paper aggregates in one message are here the
//!   messages of a lane, which follow each other on one link.
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes, the least there is; half of them go to the nearest rank and
//!   one block to the farthest, which is what a tapered network wants
//! * cost: `ceil(log2 n) a + (n-1) m b`
//! * class: canonical (nothing is reduced)
//! * wins: many ranks, while the ring's `(n-1) a` counts, and where far links are the slow ones or `n` is no power of two
//! * source: S. Jeaugey, "PAT: a new algorithm for all-gather and reduce-scatter operations at scale" (2025); J. Bruck et al.,
//!   "Efficient algorithms for all-to-all communications in multiport message-passing systems", IEEE TPDS 8 (1997)
//!
//! The own block is copied to the output first and sent from there: in place the two are one memory, and a
//! lane may not read what another is writing.

use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over rotated binomial trees.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::alone("pat", Collective::AllGather);
    }
    Schedule::new("pat", Collective::AllGather, nranks, 1, Pat { nranks }).canonical()
}

struct Pat {
    nranks: u32,
}

impl Pat {
    /// How many distances there are: `ceil(log2 n)`.
    fn dimensions(&self) -> u32 {
        self.nranks.next_power_of_two().trailing_zeros()
    }

    /// The lane of distance `2^k`, and the `k` of a lane: the farthest is lane 0.
    fn mirrored(&self, lane_or_k: u32) -> u32 {
        self.dimensions() - 1 - lane_or_k
    }

    /// The rank whose block is `offset` at `rank`; also the rank `offset` below it.
    fn below(&self, rank: Rank, offset: u32) -> Rank {
        if rank >= offset { rank - offset } else { rank + (self.nranks - offset) }
    }

    /// The rank `distance` above.
    fn above(&self, rank: Rank, distance: u32) -> Rank {
        self.below(rank, self.nranks - distance)
    }

    /// Where a rank gets `offset`: the lane, and the step in it.
    fn arrival(&self, offset: u32) -> (u32, u32) {
        if offset == 0 {
            return (0, 0);
        }
        let k = offset.trailing_zeros();
        let lane = self.mirrored(k);
        (lane, copies(lane) + 2 * (offset >> (k + 1)) + 1)
    }
}

/// How many steps stand before the sends and receives of `lane`: the copy of the own block.
fn copies(lane: u32) -> u32 {
    u32::from(lane == 0)
}

impl Program for Pat {
    fn lanes(&self, _: Rank) -> u32 {
        self.dimensions()
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        let k = self.mirrored(lane);
        copies(lane) + 2 * (self.nranks - (1 << k)).div_ceil(2 << k)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let Some(index) = index.checked_sub(copies(lane)) else {
            return Step::new([input(0)], [output(rank)]);
        };
        let k = self.mirrored(lane);
        let offset = (index / 2) << (k + 1);
        if !index.is_multiple_of(2) {
            let from = peer(self.below(rank, 1 << k), 0);
            return Step::new([from], [output(self.below(rank, offset + (1 << k)))]);
        }
        let to = peer(self.above(rank, 1 << k), 0);
        let send = Step::new([output(self.below(rank, offset))], [to]);
        match self.arrival(offset) {
            (from, _) if from == lane => send,
            (from, step) => send.after(from, step),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Chunk, Operand};

    #[test]
    fn every_block_is_written_once_and_blocks_are_sent_n_minus_one_times() {
        for n in (1..70).chain([100, 128, 129]) {
            let schedule = schedule(n);
            for rank in [0, n / 2, n - 1] {
                let steps = (0..schedule.lanes(rank)).flat_map(|l| schedule.lane(rank, l));
                let outputs: Vec<_> = steps.flat_map(|s| s.outputs.to_vec()).collect();
                let mut written: Vec<_> = outputs
                    .iter()
                    .filter_map(|o| match o {
                        Operand::Local(Chunk::Output(i)) => Some(*i),
                        _ => None,
                    })
                    .collect();
                written.sort_unstable();
                assert_eq!(written, (0..n).collect::<Vec<_>>(), "rank {rank} of {n}");
                assert_eq!(outputs.len() as u32, 2 * n - 1, "rank {rank} of {n}");
            }
        }
    }

    #[test]
    fn far_peers_come_first_with_little_data() {
        let lengths = |n: u32| (0..6).map(|l| schedule(n).steps(0, l) / 2).collect::<Vec<_>>();
        assert_eq!(lengths(64), [1, 2, 4, 8, 16, 32]);
        assert_eq!(lengths(37), [1, 1, 2, 5, 9, 18]);
        assert_eq!(schedule(64).step(60, 0, 1).outputs[0], peer(28, 0));
    }

    #[test]
    fn a_step_costs_the_same_at_a_hundred_thousand_ranks() {
        let n = 100_003;
        let schedule = schedule(n);
        let last = schedule.lanes(7) - 1;
        assert_eq!(schedule.steps(7, last), 2 * (n / 2));
        let step = schedule.step(7, last, schedule.steps(7, last) - 1);
        assert_eq!(step, Step::new([peer(6, 0)], [output((7 + n - (n - 2)) % n)]));
    }
}
