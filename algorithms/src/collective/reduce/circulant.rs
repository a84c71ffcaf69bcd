//! Circulant reduce: the rounds of the circulant broadcast in reverse. Where a rank sends a block
//! in the broadcast, it receives a partial sum of that block here and adds it to its own; where it
//! receives a block there, it sends its partial sum here.
//!
//! With `q = ceil(log2 n)` the vector has `k = 4 q + 1` parts, and one tile moves a tile of each of
//! them: `k - 1 + q = 5 q` rounds.
//!
//! * steps: at most one send and one fold per round, in one lane: up to `10 q`
//! * bytes sent per rank: `m`; the root receives `(5 q / (4 q + 1)) m`
//! * cost: `(k - 1 + q) (a + m/k b + m/k g)`, here `5 q a + 5 q / (4 q + 1) m (b + g)`: the least
//!   number of rounds there can be
//! * scratch: `2 q` chunks. A rank holds the partial sum of a block for at most two phases of `q`
//!   rounds, so block `v` shares its chunk with block `v + 2 q`.
//! * class: fast. Every block has a tree of its own, counted from the root on.
//! * wins: large vectors at any number of ranks, where ranks have one port
//! * source: J. L. Träff, "Optimal Broadcast Schedules in Logarithmic Time with Applications to
//!   Broadcast, All-Broadcast, Reduction and All-Reduction" (2024), arXiv:2407.18004; see
//!   [`crate::pattern::broadcast_rounds`]
//!
//! A step is found in O(log^2 n): whether a partial sum is the first of its block follows from what
//! the rank sends over every skip.

use crate::pattern::broadcast_turns::{NodeTurn, RootedTurns};
use crate::schedule::operand::{input, output, peer, scratch};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce to `root` in optimal rounds.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Reduce { root };
    if nranks == 1 {
        return crate::collective::single_rank("circulant", collective);
    }
    let program = Circulant { turns: RootedTurns { nranks, root } };
    let turns = program.turns.of_rank(root);
    Schedule::new("circulant", collective, nranks, turns.blocks(), program)
        .with_scratch(2 * turns.rounds.skips())
}

struct Circulant {
    turns: RootedTurns,
}

impl Program for Circulant {
    fn lanes(&self, _: Rank) -> u32 {
        1
    }

    fn steps(&self, rank: Rank, _: u32) -> u32 {
        self.turns.of_rank(rank).count()
    }

    fn step(&self, rank: Rank, _: u32, index: u32) -> Step {
        let turns = self.turns.of_rank(rank);
        let NodeTurn { block, peer: other, sends, phase, skip } =
            turns.turn(turns.count() - 1 - index);
        let link = peer(self.turns.rank_at(other), 0);
        let sum = if rank == self.turns.root {
            output(block)
        } else {
            scratch(block % (2 * turns.rounds.skips()))
        };
        if !sends {
            let is_alone = turns.sends_of(block).next().is_none();
            return Step::new([if is_alone { input(block) } else { sum }], [link]);
        }
        // In reverse, what is sent last in the broadcast comes first.
        let is_first = turns.sends_of(block).all(|send| send <= (phase, skip));
        let is_last = turns.sends_of(block).all(|send| send >= (phase, skip));
        let own = if is_first { input(block) } else { sum };
        let mut step = Step::new([own, link], [sum]);
        step.finish = is_last && rank == self.turns.root;
        step
    }
}
