//! Bidirectional ring all-reduce: each part of the vector is reduced along two arms of the ring to
//! one rank, and the result is sent back along both arms.
//!
//! * steps: `2 ceil((n-1)/2) + 1` and `2 floor((n-1)/2) + 2` in two lanes, one for each direction
//! * bytes sent per rank: `2 (n-1)/n m`, half of them in each direction
//! * cost: `2 ceil((n-1)/2) (a + m/n b) + (n-1)/n m g` where a link can be used in both directions
//!   at once
//! * credits: 2, as on any ring; no scratch
//! * class: fast. Part `c` is the chain from `c - n/2` up to `c - 1`, combined with the chain from
//!   `c + (n-1)/2` down to `c`.
//! * wins: as for the ring, where links are full duplex: it takes half of the ring's steps
//! * source: folklore

use crate::pattern::biring::{RingDirection, lanes};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over a ring of `nranks` in rank order, in both directions.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("biring", Collective::AllReduce);
    }
    Schedule::new("biring", Collective::AllReduce, nranks, nranks, Biring { nranks })
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
        // The part that is completed on this rank needs one step of the upward lane and two of the
        // downward lane.
        2 * RingDirection::of_lane(lane).arm(self.nranks) + 1 + lane
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let n = self.nranks;
        let direction = RingDirection::of_lane(lane);
        let arm = direction.arm(n);
        let from = peer(direction.behind(rank, 1, n), direction.channel());
        let to = peer(direction.ahead(rank, 1, n), direction.channel());
        if index < arm {
            let own = input(direction.ahead(rank, arm - index, n));
            return if index == 0 { Step::new([own], [to]) } else { Step::new([from, own], [to]) };
        }
        let hops = index - arm;
        match direction {
            RingDirection::Up if hops == 0 => self.complete(rank),
            RingDirection::Down if hops == 0 => Step::new([input(rank), from], [output(rank)]),
            RingDirection::Down if hops == 1 => {
                Step::new([output(rank)], [to]).after(0, self.turn())
            }
            _ => {
                let hops = hops - lane;
                let part = output(direction.behind(rank, hops, n));
                Step::new([from], [part].into_iter().chain((hops < arm).then_some(to)))
            }
        }
    }
}

impl Biring {
    /// The index of the step of the upward lane that completes a part and sends it on.
    const fn turn(&self) -> u32 {
        RingDirection::Up.arm(self.nranks)
    }

    fn complete(&self, rank: Rank) -> Step {
        let n = self.nranks;
        let up = RingDirection::Up;
        let from = peer(up.behind(rank, 1, n), up.channel());
        let to = [output(rank), peer(up.ahead(rank, 1, n), up.channel())];
        if lanes(n) == 1 {
            return Step::new([from, input(rank)], to).finishing();
        }
        Step::new([from, output(rank)], to).finishing().after(1, RingDirection::Down.arm(n))
    }
}
