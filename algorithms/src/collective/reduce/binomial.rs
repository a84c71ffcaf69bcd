//! Binomial reduce: aligned blocks of ranks merge two by two until the root holds the whole.
//!
//! * steps: one per merge in which a rank receives, at most `ceil(log2 n)`; one for the others
//! * bytes sent per rank: `m`; none by the root, which receives up to `ceil(log2 n) m`
//! * cost: `ceil(log2 n) (a + m b + m g)`
//! * scratch: one chunk, for the sum so far at ranks that have no receive buffer
//! * class: canonical at every root: rank order is kept because the root is the holder of every
//!   block that contains it, see [`crate::pattern::aligned`]
//! * wins: small vectors at more than a few ranks
//! * source: folklore; R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective
//!   Communication Operations in MPICH", IJHPCA 19 (2005), section 3; holders that keep the order
//!   at every root are our own.
//!
//! The last sum of a rank is written directly to its message.

use crate::pattern::aligned::{merges, receiver};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` up the tree of aligned blocks.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("binomial", collective);
    }
    Schedule::new("binomial", collective, nranks, 1, Binomial { nranks, root })
        .with_scratch(1)
        .canonical()
}

struct Binomial {
    nranks: u32,
    root: Rank,
}

impl Program for Binomial {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        (merges(rank, self.root, self.nranks).count() as u32).max(1)
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let Self { nranks, root } = *self;
        let kept = if rank == root { output(0) } else { scratch(0) };
        let own = if index == 0 { input(0) } else { kept };
        let is_last = index + 1 == self.steps(rank, 0);
        let receiver_now = receiver(rank, root, nranks).filter(|_| is_last);
        let target = receiver_now.map_or(kept, |to| peer(to, 0));
        let Some(merge) = merges(rank, root, nranks).nth(index as usize) else {
            return Step::new([own], [target]);
        };
        let theirs = peer(merge.source, 0);
        let inputs = if merge.source_is_lower { [theirs, own] } else { [own, theirs] };
        let mut step = Step::new(inputs, [target]);
        step.finish = is_last && rank == root;
        step
    }
}
