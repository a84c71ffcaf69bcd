//! Bidirectional ring all-gather: each block travels along two arms of the ring, half of the ranks
//! on each.
//!
//! * steps: `ceil((n-1)/2) + 1` and `floor((n-1)/2) + 1` in two lanes, one for each direction
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes, half of them in each direction
//! * cost: `ceil((n-1)/2) (a + m b)` where a link can be used in both directions at once
//! * credits: 2, as on any ring
//! * class: canonical (nothing is reduced)
//! * wins: as for the ring, where links are full duplex: it takes half of the ring's steps
//! * source: folklore

use crate::pattern::biring::{RingDirection, lanes};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over a ring of `nranks` in rank order, in both directions.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("biring", Collective::AllGather);
    }
    Schedule::new("biring", Collective::AllGather, nranks, 1, Biring { nranks })
        .with_credit(2)
        .with_channels(lanes(nranks) as u16)
        .canonical()
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
        let to = peer(direction.ahead(rank, 1, n), direction.channel());
        if index == 0 {
            // The downward lane sends the copy in the output, so it waits for the upward lane to
            // make it.
            return match direction {
                RingDirection::Up => Step::new([input(0)], [output(rank), to]),
                RingDirection::Down => Step::new([output(rank)], [to]).after(0, 0),
            };
        }
        let from = peer(direction.behind(rank, 1, n), direction.channel());
        let block = output(direction.behind(rank, index, n));
        if index < direction.arm(n) {
            Step::new([from], [block, to])
        } else {
            Step::new([from], [block])
        }
    }
}
