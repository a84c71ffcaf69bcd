//! Bidirectional ring all-reduce: each part of the vector comes to one rank along two arms of the
//! ring to be reduced, and goes out along them to be spread.
//!
//! * steps: `2 ceil((n-1)/2) + 1` and `2 floor((n-1)/2) + 2` in two lanes, one for each direction
//! * bytes sent per rank: `2 (n-1)/n m`, half of them in each direction
//! * cost: `2 ceil((n-1)/2) (a + m/n b) + (n-1)/n m g` where both directions of a link are free
//! * credits: 2 as on any ring; no scratch
//! * class: fast. Part `c` is the chain from `c - n/2` up to `c - 1`, combined with the chain from
//!   `c + (n-1)/2` down to `c`.
//! * wins: where the ring does and links are full duplex: half of its steps
//! * source: folklore of rings with two directions

use crate::pattern::biring::{Direction, lanes};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-reduce over a ring of `nranks` in rank order, both ways.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::alone("biring", Collective::AllReduce);
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
        // The part that is complete on this rank takes one step of the lane up, and two of the lane
        // down.
        2 * Direction::of_lane(lane).arm(self.nranks) + 1 + lane
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let n = self.nranks;
        let direction = Direction::of_lane(lane);
        let arm = direction.arm(n);
        let from = peer(direction.behind(rank, 1, n), direction.channel());
        let to = peer(direction.ahead(rank, 1, n), direction.channel());
        if index < arm {
            let own = input(direction.ahead(rank, arm - index, n));
            return if index == 0 { Step::new([own], [to]) } else { Step::new([from, own], [to]) };
        }
        let hops = index - arm;
        match direction {
            Direction::Up if hops == 0 => self.complete(rank),
            Direction::Down if hops == 0 => Step::new([input(rank), from], [output(rank)]),
            Direction::Down if hops == 1 => Step::new([output(rank)], [to]).after(0, self.turn()),
            _ => {
                let hops = hops - lane;
                let part = output(direction.behind(rank, hops, n));
                Step::new([from], [part].into_iter().chain((hops < arm).then_some(to)))
            }
        }
    }
}

impl Biring {
    /// The step of the lane up that makes a part complete and sends it on.
    const fn turn(&self) -> u32 {
        Direction::Up.arm(self.nranks)
    }

    fn complete(&self, rank: Rank) -> Step {
        let n = self.nranks;
        let up = Direction::Up;
        let from = peer(up.behind(rank, 1, n), up.channel());
        let to = [output(rank), peer(up.ahead(rank, 1, n), up.channel())];
        if lanes(n) == 1 {
            return Step::new([from, input(rank)], to).finishing();
        }
        Step::new([from, output(rank)], to).finishing().after(1, Direction::Down.arm(n))
    }
}
