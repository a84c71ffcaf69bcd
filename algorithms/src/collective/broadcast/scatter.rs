//! Broadcast by parts: the root cuts the vector into `n-1` parts and sends one to each other rank;
//! every rank sends its part to all others except the root. It is a scatter and an all-gather, both
//! direct.
//!
//! * steps: `n-1` at the root, elsewhere `ceil((n-1)/8)` that receive the rank's own part and send
//!   it on, in one lane, and `n-2` receives in another
//! * bytes sent per rank: `m` by the root, `(n-2)/(n-1) m` by the others
//! * cost: `2 a + 2 m b`; tiles overlap, so that large vectors cost about `m b`
//! * class: canonical (nothing is reduced)
//! * wins: large vectors where every pair has a direct link and no rank should send the vector more
//!   than once
//! * source: M. Barnett et al., "Interprocessor collective communication library (InterCom)", SHPCC
//!   1994, section on long vectors. There the root keeps a part too; here it keeps none, since it
//!   would have to send that one `n-1` times.

use crate::pattern::fan::FanOut;
use crate::pattern::ring::{after, before};
use crate::schedule::MAX_FAN;
use crate::schedule::operand::{input, output, peer};
use crate::schedule::{Program, Schedule, Step};
use crate::types::{Collective, Rank};

/// Broadcast from `root` by parts.
pub fn schedule(nranks: u32, root: Rank) -> Schedule {
    let collective = Collective::Broadcast { root };
    if nranks == 1 {
        return crate::collective::single_rank("scatter", collective);
    }
    Schedule::new("scatter", collective, nranks, nranks - 1, Parts { nranks, root }).canonical()
}

/// Part `p` belongs to the rank `p + 1` after the root.
struct Parts {
    nranks: u32,
    root: Rank,
}

impl Parts {
    fn holder(&self, part: u32) -> Rank {
        after(self.root, part + 1, self.nranks)
    }

    /// The part of a rank that is not the root.
    fn part(&self, rank: Rank) -> u32 {
        before(rank, self.root + 1, self.nranks)
    }

    /// The steps that send a part to its holder's output and on to the holders of the other parts.
    const fn fan_out(&self) -> FanOut {
        FanOut { targets: self.nranks - 2, first: MAX_FAN as u32 - 1 }
    }

    /// The part of holder number `i` after that of `part`.
    fn other(&self, part: u32, i: u32) -> u32 {
        after(part, i + 1, self.nranks - 1)
    }
}

impl Program for Parts {
    fn lanes(&self, rank: Rank) -> u32 {
        if rank == self.root { 1 } else { 2 }
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        match lane {
            0 if rank == self.root => self.nranks - 1,
            0 => self.fan_out().steps(),
            _ => self.nranks - 2,
        }
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        if rank == self.root {
            return Step::new([input(index)], [output(index), peer(self.holder(index), 0)]);
        }
        let part = self.part(rank);
        if lane == 1 {
            let from = before(part, index + 1, self.nranks - 1);
            return Step::new([peer(self.holder(from), 0)], [output(from)]);
        }
        let others = self.fan_out().step(index);
        let others = others.map(|i| peer(self.holder(self.other(part, i)), 0));
        if index == 0 {
            return Step::new([peer(self.root, 0)], [output(part)].into_iter().chain(others));
        }
        Step::new([output(part)], others)
    }
}
