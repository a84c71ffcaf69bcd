//! Circulant broadcast: the vector is cut into `k` blocks and sent over a circulant graph in the
//! optimal number of rounds, for any number of ranks.
//!
//! With `q = ceil(log2 n)` the vector has `k = 4 q + 1` parts, and one tile moves a tile of each of
//! them: `k - 1 + q = 5 q` rounds. A rank begins the next tile when it has finished its rounds.
//!
//! * steps: at most one send and one receive per round, in one lane: up to `10 q`
//! * bytes sent per rank: `m` on average; `(5 q / (4 q + 1)) m`, about a quarter more, by the root
//! * cost: `(k - 1 + q) (a + m/k b)`, here `5 q a + 5 q / (4 q + 1) m b`: no other broadcast in
//!   one-ported full-duplex rounds takes fewer rounds for as many blocks
//! * class: canonical (nothing is reduced)
//! * wins: large vectors at any number of ranks, where ranks have one port: no rank moves more than
//!   about a quarter more than it must, and latency is logarithmic
//! * source: J. L. Träff, "Optimal Broadcast Schedules in Logarithmic Time with Applications to
//!   Broadcast, All-Broadcast, Reduction and All-Reduction" (2024), arXiv:2407.18004; see
//!   [`crate::pattern::broadcast_rounds`]
//!
//! Ranks are not synchronised by a clock, so a rank may run ahead of the rounds as far as its
//! credits allow; messages then queue at a receiver's port.
//!
//! Four blocks per skip and tile: the root repeats the last block in the last `q - 1` rounds, so
//! more blocks would bring its bytes closer to `m`, and fewer the latency of a small vector closer
//! to `q`.

use crate::pattern::broadcast_turns::RootedTurns;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` in optimal rounds.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("circulant", collective);
    }
    let turns = RootedTurns { nranks, root };
    let blocks = turns.of_rank(root).blocks();
    let program = Circulant { turns };
    Schedule::new("circulant", collective, nranks, blocks, program).canonical()
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
        let turn = turns.turn(index);
        let link = peer(self.turns.rank_at(turn.peer), 0);
        if !turn.sends {
            return Step::new([link], [output(turn.block)]);
        }
        if rank != self.turns.root {
            return Step::new([output(turn.block)], [link]);
        }
        // The root sends every block once, and the last block again in the rest of the last phase.
        let kept = (index < turns.blocks()).then_some(output(turn.block));
        Step::new([input(turn.block)], kept.into_iter().chain([link]))
    }
}
