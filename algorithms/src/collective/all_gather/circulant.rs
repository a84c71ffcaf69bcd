//! Circulant all-gather: `ceil(log2 n)` rounds and the least data, at every rank count; the
//! reduce-scatter in reverse. See [`crate::pattern::circulant`].
//!
//! * steps: per rank `n-1` sends and `n-1` receives, those of each round in a lane each
//! * bytes sent per rank: `(n-1) m` for blocks of `m` bytes; half of them go to the farthest rank
//! * cost: `ceil(log2 n) a + (n-1) m b`
//! * credits: 1
//! * class: canonical (nothing is reduced)
//! * wins: mid-size blocks at many ranks, on networks where links to far ranks are as fast as links
//!   to near ones
//! * source: see the pattern
//!
//! A round sends offsets in the order in which the rounds before received them. The first offset of
//! each of those rounds waits for the last receive of that round.

use crate::pattern::circulant::Circulant;
use crate::pattern::ring::{after, before};
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{After, Channel, Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// All-gather over the circulant graph.
pub fn schedule(nranks: u32) -> Schedule {
    if nranks == 1 {
        return crate::collective::single_rank("circulant", Collective::AllGather);
    }
    let (pattern, own) = (Circulant { nranks }, After { lane: 0, step: 0 });
    let spread = Spread { pattern, first_lane: 1, channel: 0, own };
    Schedule::new("circulant", Collective::AllGather, nranks, 1, Gather { spread }).canonical()
}

/// The steps that bring block `r` from rank `r` to all outputs: for each round a lane that receives
/// and one that sends.
#[derive(Clone, Copy)]
pub(in crate::collective) struct Spread {
    pub(in crate::collective) pattern: Circulant,
    /// The number of its first lane.
    pub(in crate::collective) first_lane: u32,
    pub(in crate::collective) channel: Channel,
    /// The step that writes the rank's own block to the output and sends it to
    /// [`first`](Self::first).
    pub(in crate::collective) own: After,
}

impl Spread {
    /// The rank to which the rank's own block is sent first.
    pub(in crate::collective) const fn first(self, rank: Rank) -> Rank {
        before(rank, 1, self.pattern.nranks)
    }

    pub(in crate::collective) const fn lanes(self) -> u32 {
        2 * self.pattern.rounds() - 1
    }

    /// What `lane` does: receive or send, in which round. The first round, number `q`, has only a
    /// lane that receives.
    const fn part(self, lane: u32) -> (bool, u32) {
        let nth = lane - self.first_lane;
        (nth.is_multiple_of(2), self.pattern.rounds() - nth.div_ceil(2))
    }

    /// The lane that receives in round `k`.
    const fn receiver(self, k: u32) -> u32 {
        self.first_lane + 2 * (self.pattern.rounds() - k)
    }

    pub(in crate::collective) const fn steps(self, lane: u32) -> u32 {
        self.pattern.moved(self.part(lane).1)
    }

    pub(in crate::collective) fn step(self, rank: Rank, lane: u32, index: u32) -> Step {
        let n = self.pattern.nranks;
        let (receives, k) = self.part(lane);
        let skip = self.pattern.skip(k);
        if receives {
            let from = peer(after(rank, skip, n), self.channel);
            return Step::new([from], [output(after(rank, skip + index, n))]);
        }
        let to = peer(before(rank, skip, n), self.channel);
        let send = Step::new([output(after(rank, index, n))], [to]);
        if index == 0 {
            return send.after(self.own.lane, self.own.step);
        }
        let received_in = self.pattern.round(index);
        if index == self.pattern.skip(received_in) {
            return send.after(self.receiver(received_in), self.pattern.moved(received_in) - 1);
        }
        send
    }
}

struct Gather {
    spread: Spread,
}

impl Program for Gather {
    fn lanes(&self, _: Rank) -> u32 {
        1 + self.spread.lanes()
    }

    fn steps(&self, _: Rank, lane: u32) -> u32 {
        if lane == 0 { 1 } else { self.spread.steps(lane) }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if lane == 0 {
            return Step::new([input(0)], [output(rank), peer(self.spread.first(rank), 0)]);
        }
        self.spread.step(rank, lane, index)
    }
}
