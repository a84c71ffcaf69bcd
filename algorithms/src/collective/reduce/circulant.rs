//! Circulant reduce: the rounds of the circulant broadcast backwards. Where a rank there gives a
//! block it here takes a sum of that block and adds it to its own; where it takes one, it gives its
//! sum.
//!
//! With `q = ceil(log2 n)` the vector has `k = 4 q + 1` parts, and one tile moves a tile of each of
//! them: `k - 1 + q = 5 q` rounds.
//!
//! * steps: at most one send and one fold per round, in one lane: up to `10 q`
//! * bytes sent per rank: `m`; the root receives `(5 q / (4 q + 1)) m`
//! * cost: `(k - 1 + q) (a + m/k b + m/k g)`, here `5 q a + 5 q / (4 q + 1) m (b + g)`: the least
//!   number of rounds there can be
//! * scratch: `2 q` chunks. A block's sum is under way for at most two phases of `q` rounds, so
//!   block `v` shares its chunk with block `v + 2 q`.
//! * class: fast. Every block has a tree of its own, counted from the root on.
//! * wins: large vectors at any number of ranks, where ranks have one port
//! * source: J. L. Träff, "Optimal Broadcast Schedules in Logarithmic Time with Applications to
//!   Broadcast, All-Broadcast, Reduction and All-Reduction" (2024), arXiv:2407.18004; see
//!   [`crate::pattern::broadcast_rounds`]
//!
//! A step is found in O(log^2 n): whether a sum is the first of its block follows from what the
//! rank gives over every skip.

use crate::pattern::binomial::{node, rank as at};
use crate::pattern::broadcast_rounds::Rounds;
use crate::pattern::broadcast_turns::{Turn, Turns};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Phases after the first, so blocks per skip.
const LATER: u32 = 4;

/// Reduce to `root` in optimal rounds.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::alone("circulant", collective);
    }
    let program = Circulant { nranks, root };
    let turns = program.turns(root);
    Schedule::new("circulant", collective, nranks, turns.blocks(), program)
        .with_scratch(2 * turns.rounds.skips())
}

struct Circulant {
    nranks: u32,
    root: Rank,
}

impl Circulant {
    fn turns(&self, rank: Rank) -> Turns {
        let node = node(rank, self.root, self.nranks);
        Turns { rounds: Rounds::new(self.nranks), later: LATER, node }
    }
}

impl Program for Circulant {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        self.turns(rank).count()
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let turns = self.turns(rank);
        let Turn { block, peer: other, gives, phase, skip } = turns.turn(turns.count() - 1 - index);
        let link = peer(at(other, self.root, self.nranks), 0);
        let sum = if rank == self.root {
            output(block)
        } else {
            scratch(block % (2 * turns.rounds.skips()))
        };
        if !gives {
            let is_alone = turns.gifts(block).next().is_none();
            return Step::new([if is_alone { input(block) } else { sum }], [link]);
        }
        // Backwards, what is given last in the broadcast comes first.
        let is_first = turns.gifts(block).all(|gift| gift <= (phase, skip));
        let is_last = turns.gifts(block).all(|gift| gift >= (phase, skip));
        let own = if is_first { input(block) } else { sum };
        let mut step = Step::new([own, link], [sum]);
        step.finish = is_last && rank == self.root;
        step
    }
}
