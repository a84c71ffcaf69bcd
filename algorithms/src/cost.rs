//! What a schedule costs: the schedule itself is executed in a model of time, not a formula beside it.
//!
//! The model: a step takes [`Machine::step`] seconds, plus [`Machine::byte`] for every byte read or written. A message is there
//! [`Machine::latency`] seconds after its step is over. The lanes of a rank run side by side
//! ([`Machine::lanes_share_a_core`] false, a GPU) or take turns (true, the host engine). Where ranks outnumber cores, a core's time is
//! shared evenly.

use std::collections::{HashMap, VecDeque};

use crate::schedule::{Channel, Operand, Schedule, Step};
use crate::types::Rank;

/// What the model knows of a machine, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// From the end of a step to the arrival of its message.
    pub latency: f64,
    /// Fixed cost of a step.
    pub step: f64,
    /// Cost of every operand of a step.
    pub operand: f64,
    /// Cost of reading or writing a byte.
    pub byte: f64,
    /// All lanes of a rank run on one core.
    pub lanes_share_a_core: bool,
    /// Ranks per core, at least 1.
    pub ranks_per_core: f64,
}

/// Tiles that are executed; longer runs are extrapolated from the last two.
const TILES: u64 = 4;

impl Machine {
    /// Seconds from the start on all ranks at once to the end on the last, for chunks that take `tiles` tiles of `bytes` bytes.
    pub fn cost(&self, schedule: &Schedule, bytes: usize, tiles: u64) -> f64 {
        let run = |tiles| Run::new(self, schedule, bytes, tiles).finish();
        if tiles <= TILES {
            return run(tiles);
        }
        let last = run(TILES);
        last + (tiles - TILES) as f64 * (last - run(TILES - 1))
    }

    fn duration(&self, step: &Step, bytes: usize) -> f64 {
        let operands = (step.inputs.len() + step.outputs.len()) as f64;
        self.ranks_per_core
            * (self.step + operands * self.operand + operands * bytes as f64 * self.byte)
    }
}

/// One execution.
struct Run<'a> {
    machine: &'a Machine,
    schedule: &'a Schedule,
    bytes: usize,
    tiles: u64,
    /// Position and free time of each lane, by rank.
    lanes: Vec<Vec<(u64, f64)>>,
    /// When each rank's core is free.
    cores: Vec<f64>,
    /// Ends of the steps so far, where other lanes may ask for them.
    ends: HashMap<(Rank, u32, u64), f64>,
    /// Arrival times of the messages under way.
    messages: HashMap<(Rank, Rank, Channel), VecDeque<f64>>,
}

impl<'a> Run<'a> {
    fn new(machine: &'a Machine, schedule: &'a Schedule, bytes: usize, tiles: u64) -> Self {
        let lanes = |r| vec![(0, 0.0); schedule.lanes(r) as usize];
        Self {
            machine,
            schedule,
            bytes,
            tiles,
            lanes: (0..schedule.nranks).map(lanes).collect(),
            cores: vec![0.0; schedule.nranks as usize],
            ends: HashMap::new(),
            messages: HashMap::new(),
        }
    }

    /// Fires steps in rounds until all are through; returns the last end.
    fn finish(mut self) -> f64 {
        loop {
            let mut progress = false;
            for rank in 0..self.schedule.nranks {
                for lane in 0..self.schedule.lanes(rank) {
                    progress |= self.fire(rank, lane);
                }
            }
            if !progress {
                return self.lanes.iter().flatten().map(|l| l.1).fold(0.0, f64::max);
            }
        }
    }

    fn fire(&mut self, rank: Rank, lane: u32) -> bool {
        let (at, free) = self.lanes[rank as usize][lane as usize];
        let steps = u64::from(self.schedule.steps(rank, lane));
        if at == steps * self.tiles {
            return false;
        }
        let step = self.schedule.step(rank, lane, (at % steps) as u32);
        let tile = at / steps;
        let mut start = free;
        for after in &step.after {
            let index =
                tile * u64::from(self.schedule.steps(rank, after.lane)) + u64::from(after.step);
            let Some(&end) = self.ends.get(&(rank, after.lane, index)) else { return false };
            start = start.max(end);
        }
        for input in &step.inputs {
            let Operand::Peer { rank: from, channel } = *input else { continue };
            let arrival = self.messages.get(&(from, rank, channel)).and_then(VecDeque::front);
            let Some(&arrival) = arrival else { return false };
            start = start.max(arrival);
        }
        if self.machine.lanes_share_a_core {
            start = start.max(self.cores[rank as usize]);
        }
        let end = start + self.machine.duration(&step, self.bytes);
        self.cores[rank as usize] = end;
        self.lanes[rank as usize][lane as usize] = (at + 1, end);
        self.ends.insert((rank, lane, at), end);
        for input in &step.inputs {
            if let Operand::Peer { rank: from, channel } = *input {
                self.messages.get_mut(&(from, rank, channel)).and_then(VecDeque::pop_front);
            }
        }
        for output in &step.outputs {
            if let Operand::Peer { rank: to, channel } = *output {
                let arrival = end + self.machine.latency;
                self.messages.entry((rank, to, channel)).or_default().push_back(arrival);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::all_reduce::{one_shot, recursive_doubling, ring};

    const LATENCY_ONLY: Machine = Machine {
        latency: 1.0,
        step: 0.0,
        operand: 0.0,
        byte: 0.0,
        lanes_share_a_core: true,
        ranks_per_core: 1.0,
    };

    #[test]
    fn latency_terms_are_those_of_the_books() {
        for n in 2..20u32 {
            let steps = |s| LATENCY_ONLY.cost(&s, 8, 1);
            assert_eq!(steps(ring::schedule(n)), f64::from(2 * (n - 1)));
            assert_eq!(steps(one_shot::schedule(n)), 1.0);
            assert_eq!(steps(recursive_doubling::schedule(n)), f64::from(n).log2().ceil());
        }
    }

    #[test]
    fn long_runs_grow_by_the_steady_tile() {
        let machine = Machine { byte: 1e-9, step: 1e-7, ..LATENCY_ONLY };
        let schedule = ring::schedule(4);
        let cost = |tiles| machine.cost(&schedule, 1 << 16, tiles);
        let exact = Run::new(&machine, &schedule, 1 << 16, 50).finish();
        assert!((cost(50) / exact - 1.0).abs() < 0.02, "{} against {exact}", cost(50));
    }
}
