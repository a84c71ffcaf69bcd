//! Bidirectional ring reduce-scatter: each block is reduced along two arms of the ring to its
//! owner, half of the ranks on each.
//!
//! * steps: `ceil((n-1)/2) + 1` and `floor((n-1)/2) + 1` in two lanes, one for each direction
//! * bytes sent per rank: `(n-1)/n m`, half of them in each direction
//! * cost: `ceil((n-1)/2) (a + m/n b) + (n-1)/n m g` where a link can be used in both directions at
//!   once
//! * credits: 2, as on any ring; no scratch, since the owner keeps in its output what it receives
//!   from the downward arm
//! * class: fast. Block `c` is the chain from `c - n/2` up to `c - 1`, combined with the chain from
//!   `c + (n-1)/2` down to `c`.
//! * wins: as for the ring, where links are full duplex: it takes half of the ring's steps
//! * source: folklore

use crate::pattern::biring::{RingDirection, lanes};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Reduce-scatter over a ring of `nranks` in rank order, in both directions.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("biring", Collective::ReduceScatter);
    }
    Schedule::new("biring", Collective::ReduceScatter, nranks, 1, Biring { nranks })
        .with_credit(2)
        .with_channels(lanes(nranks) as u16)
}

struct Biring {
    nranks: u32,
}

impl Program for Biring {
    fn lanes(&self, _: Rank) -> u32 {
        lanes(self.nranks)
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        RingDirection::of_lane(lane).arm(self.nranks) + 1
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let n = self.nranks;
        let direction = RingDirection::of_lane(lane);
        let hops = direction.arm(n) - index;
        let from = peer(direction.behind(rank, 1, n), direction.channel());
        if hops > 0 {
            let own = input(direction.ahead(rank, hops, n));
            let to = peer(direction.ahead(rank, 1, n), direction.channel());
            return if index == 0 { Step::new([own], [to]) } else { Step::new([from, own], [to]) };
        }
        match direction {
            RingDirection::Down => Step::new([input(rank), from], [output(0)]),
            RingDirection::Up if lanes(n) == 1 => {
                Step::new([from, input(rank)], [output(0)]).finishing()
            }
            RingDirection::Up => Step::new([from, output(0)], [output(0)])
                .finishing()
                .after(1, self.steps(rank, 1) - 1),
        }
    }
}
