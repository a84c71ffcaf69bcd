//! Schedules whose ranks have got other numbers.

use super::{Operand, Program, Schedule, Step};
use crate::types::Rank;

/// The steps of a schedule after each of its ranks has got the number of the rank `by` places after
/// it, in a circle.
struct Renamed {
    schedule: Schedule,
    by: Rank,
}

impl Schedule {
    /// The same declarations, with the steps of each rank at the rank `by` places after it, in a
    /// circle; `by` is less than the number of ranks.
    pub(crate) fn renamed(&self, by: Rank) -> Self {
        self.with_program(Renamed { schedule: self.clone(), by })
    }
}

impl Renamed {
    /// The number that `rank` had before.
    fn before(&self, rank: Rank) -> Rank {
        let nranks = self.schedule.nranks;
        (rank + nranks - self.by) % nranks
    }
}

impl Program for Renamed {
    fn lanes(&self, rank: Rank) -> u32 {
        self.schedule.lanes(self.before(rank))
    }

    fn steps(&self, rank: Rank, lane: u32) -> u32 {
        self.schedule.steps(self.before(rank), lane)
    }

    fn step(&self, rank: Rank, lane: u32, index: u32) -> Step {
        let mut step = self.schedule.step(self.before(rank), lane, index);
        for operand in step.inputs.iter_mut().chain(&mut step.outputs) {
            if let Operand::Peer { rank, .. } = operand {
                *rank = (*rank + self.by) % self.schedule.nranks;
            }
        }
        step
    }
}
