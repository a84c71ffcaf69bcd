//! Which schedule, protocol and tile a call gets, and why.
//!
//! Every candidate that the user's settings allow is costed by executing it in the model of the machine
//! ([`maypole_algorithms::cost`]); the cheapest wins. All inputs are the same on all ranks (the call, the rank count,
//! and settings agreed at init), so all ranks choose alike.

mod filter;

use std::fmt;

use maypole_algorithms::collective::{Generator, generators};
use maypole_algorithms::cost::{Decoded, LinkCost, Machine};
use maypole_algorithms::{Class, Collective, Schedule};

use crate::call::Task;
use crate::error::Error;
use crate::plan::geometry::Geometry;
use crate::plan::straight::StraightLine;

pub use filter::AlgorithmFilter;

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Cache lines that carry their own flag; the schedule is compiled to a straight line.
    Line,
    /// Slots of a ring; the schedule is walked tile by tile.
    Slots,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Line => "line",
            Self::Slots => "slots",
        })
    }
}

/// What was chosen for a call.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The generator's name.
    pub algorithm: &'static str,
    /// How its messages travel.
    pub protocol: Protocol,
    /// Bytes of a chunk that one tile covers.
    pub tile: usize,
    /// What the model expects, in microseconds.
    pub predicted: f64,
    /// The others that were allowed: name, protocol, tile and expected microseconds, best first.
    pub others: Vec<(&'static str, Protocol, usize, f64)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, protocol, tile, predicted, others } = self;
        write!(f, "{algorithm} by {protocol}, tiles of {tile} B, {predicted:.2} us expected")?;
        for (i, (name, protocol, tile, cost)) in others.iter().enumerate() {
            let lead = if i == 0 { "; instead of" } else { "," };
            write!(f, "{lead} {name}/{protocol}/{tile} {cost:.2} us")?;
        }
        Ok(())
    }
}

/// What choices depend on besides the call. The same on all ranks of a communicator.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    pub(crate) nranks: u32,
    /// Bytes of a slot: the largest tile.
    pub(crate) slot_bytes: usize,
    /// Slots of a link: the credits that a schedule has.
    pub(crate) depth: u32,
    /// All links have lines: no two ranks meet over TCP.
    pub(crate) lines: bool,
    /// Ranks per core on the busiest node, at least 1.
    pub(crate) ranks_per_core: f64,
    /// Schedules of this class or a stricter one are allowed.
    pub(crate) class: Class,
    /// The user asked for that class; else an algorithm that the user asks for by name is allowed whatever its class.
    pub(crate) explicit_class: bool,
    /// Which algorithms the user allows.
    pub(crate) algorithms: AlgorithmFilter,
    /// Which protocol the user wants.
    pub(crate) protocol: Option<Protocol>,
}

/// Steps of all ranks together above which a schedule is considered only if there is none of fewer: proving and costing
/// it would take seconds.
const MANY_STEPS: u64 = 1 << 17;

impl Tuner {
    /// The cheapest allowed schedule for `task`. Blocks of uneven length are costed as if all were as long as the longest.
    pub(crate) fn choose(&self, task: &Task) -> Result<(Schedule, Choice), Error> {
        let mut ranking = Vec::new();
        for generator in self.allowed(task.collective) {
            let schedule = generator.schedule(task.collective, self.nranks);
            let asked = self.algorithms.names(task.collective, generator.name);
            if schedule.class > self.class && (self.explicit_class || !asked) {
                continue;
            }
            let ways = self.ways(&schedule, task);
            if ways.is_empty() {
                continue;
            }
            let decoded = Decoded::new(&schedule);
            for (protocol, tile) in ways {
                let cost = self.cost(&schedule, &decoded, task, protocol, tile);
                ranking.push((schedule.clone(), protocol, tile, cost));
            }
        }
        ranking.sort_by(|a, b| a.3.total_cmp(&b.3));
        let entry = |(s, p, t, c): &(Schedule, _, _, f64)| (s.name, *p, *t, c * 1e6);
        let others = ranking.iter().skip(1).map(entry).collect();
        let Some((schedule, protocol, tile, cost)) = ranking.into_iter().next() else {
            return Err(self.none(task.collective));
        };
        let algorithm = schedule.name;
        Ok((schedule, Choice { algorithm, protocol, tile, predicted: cost * 1e6, others }))
    }

    /// The generators that the user allows, as far as their schedules can be proved and costed in reasonable time.
    fn allowed(&self, collective: Collective) -> Vec<&'static Generator> {
        let allowed: Vec<_> = generators(collective)
            .filter(|g| self.algorithms.allows(collective, g.name))
            .map(|g| (self.steps(&g.schedule(collective, self.nranks)), g))
            .collect();
        let least = allowed.iter().map(|(steps, _)| *steps).min().unwrap_or(0);
        let affordable = |steps: u64| steps <= MANY_STEPS.max(least);
        allowed.into_iter().filter(|(steps, _)| affordable(*steps)).map(|(_, g)| g).collect()
    }

    /// Steps of all ranks together, if all do as much as the last one.
    fn steps(&self, schedule: &Schedule) -> u64 {
        let rank = self.nranks - 1;
        let steps = |lane| u64::from(schedule.steps(rank, lane));
        u64::from(self.nranks) * (0..schedule.lanes(rank)).map(steps).sum::<u64>()
    }

    /// Protocols and tiles that `schedule` can use for `task`.
    fn ways(&self, schedule: &Schedule, task: &Task) -> Vec<(Protocol, usize)> {
        let geometry = Geometry::new(schedule, task, self.slot_bytes);
        let mut ways = Vec::new();
        if self.lines
            && self.protocol != Some(Protocol::Slots)
            && StraightLine::fits(schedule, &geometry, task.dtype.size())
        {
            ways.push((Protocol::Line, self.slot_bytes));
        }
        if ways.is_empty() && schedule.credit <= self.depth {
            ways.extend(self.tiles().map(|tile| (Protocol::Slots, tile)));
        }
        ways
    }

    /// Whole slots for long vectors, parts of slots where short ones would not fill the pipeline.
    fn tiles(&self) -> impl Iterator<Item = usize> {
        let slot = self.slot_bytes;
        [slot, slot / 2, slot / 4].into_iter().filter(move |t| *t >= 4096 || *t == slot)
    }

    fn cost(
        &self,
        schedule: &Schedule,
        decoded: &Decoded,
        task: &Task,
        protocol: Protocol,
        tile: usize,
    ) -> f64 {
        let geometry = Geometry::new(schedule, task, tile);
        let bytes = geometry.longest().min(geometry.tile) * task.dtype.size();
        self.machine(protocol).cost_decoded(decoded, bytes, geometry.tiles)
    }

    /// The model of this machine, from measurements over shared memory, or over TCP if any two ranks meet there: the slowest
    /// link sets the pace. See `docs/tuning.md`.
    fn machine(&self, protocol: Protocol) -> Machine {
        // A rank that shares its core with others is woken by the scheduler, not by a cache line.
        let wakeup = if self.ranks_per_core > 1.0 { 3e-6 } else { 0.0 };
        let (latency, step, operand, byte) = match protocol {
            Protocol::Line => (0.08e-6, 0.01e-6, 0.01e-6, 0.2e-9),
            // A message is a system call at either end, and is copied by each.
            Protocol::Slots if !self.lines => (10e-6, 1.5e-6, 1.5e-6, 0.3e-9),
            Protocol::Slots => (0.15e-6, 0.10e-6, 0.04e-6, 0.04e-9),
        };
        Machine {
            step,
            operand,
            byte,
            lanes_share_a_core: true,
            ranks_per_core: self.ranks_per_core,
            link: LinkCost { latency: latency + wakeup, message: 0.0, byte: 0.0 },
            network: None,
        }
    }

    fn none(&self, collective: Collective) -> Error {
        let names: Vec<_> = generators(collective).map(|g| g.name).collect();
        Error::InvalidUsage {
            what: format!(
                "no algorithm for {collective} is left by NCCL_ALGO and MAYPOLE_BITS; there are: {}",
                names.join(", ")
            ),
        }
    }
}
