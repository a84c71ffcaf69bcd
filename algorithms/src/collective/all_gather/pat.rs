//! All-gather by parallel aggregated trees: the block of each rank is sent down a binomial tree,
//! far hops first, and the `n` trees are the same up to rotation. See [`crate::pattern::pat`].
//!
//! * steps: per rank one for each block, in up to five lanes by the level in the tree: receive it,
//!   keep it and send it to all children in one pass (several passes above 7 children, which occurs
//!   above 128 ranks)
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes, the minimum; half of them go to the
//!   nearest rank and one block to the farthest, which suits networks with less bandwidth between
//!   far ranks
//! * cost: `ceil(log2 n) a + (n-1) m b`; above 64 ranks the levels that share a lane make it
//!   `(4 + n/32) a`
//! * credits: 1; a rank has less than `4 log2(n)` links
//! * class: canonical (nothing is reduced)
//! * wins: many ranks, as long as the ring's `(n-1) a` matters, and where links to far ranks are
//!   slow or `n` is not a power of two
//! * source: see the pattern

use crate::pattern::pat::{OffsetPart, Pat};
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over rotated binomial trees.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("pat", Collective::AllGather);
    }
    let pattern = Pat { nranks };
    Schedule::new("pat", Collective::AllGather, nranks, 1, Trees { pattern })
        .with_channels(pattern.channels())
        .canonical()
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
        let OffsetPart { offset, from, to, first, .. } = pattern.part(lane, index);
        let block = output(before(rank, offset, n));
        let children = (from..to).map(|j| peer(after(rank, 1 << j, n), pattern.channel(offset)));
        if !first {
            return Step::new([block], children);
        }
        let source = if offset == 0 {
            input(0)
        } else {
            let distance = pattern.distance(offset);
            peer(before(rank, distance, n), pattern.channel(offset - distance))
        };
        Step::new([source], [block].into_iter().chain(children))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Chunk, Operand};

    #[test]
    fn every_block_is_written_once_and_blocks_are_sent_n_minus_one_times() {
        for n in (1..70).chain([100, 128, 129, 300]) {
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
    fn far_peers_get_little_data() {
        let schedule = schedule(64);
        let steps = (0..5).flat_map(|lane| schedule.lane(60, lane).collect::<Vec<_>>());
        let outputs: Vec<_> = steps.flat_map(|s| s.outputs.to_vec()).collect();
        let sent = |to| {
            let to = |o: &&Operand| matches!(o, Operand::Peer { rank, .. } if *rank == to);
            outputs.iter().filter(to).count()
        };
        assert_eq!([61, 62, 0, 4, 12, 28].map(sent), [32, 16, 8, 4, 2, 1]);
    }

    #[test]
    fn a_step_costs_the_same_at_a_hundred_thousand_ranks() {
        let n = 100_003;
        let schedule = schedule(n);
        assert_eq!(schedule.steps(7, 0), n / 2);
        let last = schedule.step(7, 0, n / 2 - 1);
        assert_eq!(last, Step::new([peer(6, 3)], [output((7 + n - (n - 2)) % n)]));
    }
}
