//! The tuner: chooses the schedule, the protocol and the tile of a call by the cost model.
//!
//! The cost of a schedule that the settings of the user allow is found by executing it in the model
//! of the machine ([`maypole_algorithms::cost`]). The cheapest schedule is chosen. All inputs are
//! the same on all ranks (the call, the number of ranks, and settings agreed at init), so all ranks
//! make the same choice.

mod candidates;
mod filter;
mod machine;

use std::fmt;
use std::sync::Arc;

use maypole_algorithms::FlatSchedule;
use maypole_algorithms::schedule::Channel;
use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Class, Collective, Schedule};

use crate::call::Task;
use crate::channels::MAX_OF_SCHEDULES;
use crate::config::{ProtocolRules, ProtocolSetting};
use crate::error::Error;
use crate::geometry::Geometry;

pub(crate) use candidates::candidates;
pub use filter::AlgorithmFilter;

/// How the messages of a call travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// LL messages, whose data and flag share a cache line; the plan is compiled.
    Ll,
    /// Slots of a ring, or lent memory; the plan is interpreted tile by tile.
    Slots,
}

impl Protocol {
    /// The only protocol that a setting allows, if it does not allow both.
    pub(crate) fn required_by(setting: ProtocolSetting) -> Option<Self> {
        match setting {
            ProtocolSetting::Auto => None,
            ProtocolSetting::Line => Some(Self::Ll),
            ProtocolSetting::Slots => Some(Self::Slots),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ll => "line",
            Self::Slots => "slots",
        })
    }
}

/// The choice for a call.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The name of the algorithm.
    pub algorithm: &'static str,
    /// More than the name says, such as the components of a hierarchy.
    pub detail: Option<Arc<str>>,
    /// How the messages travel.
    pub protocol: Protocol,
    /// Bytes of a chunk that one tile covers.
    pub tile: usize,
    /// The time that the model predicts, in microseconds.
    pub predicted: f64,
    /// The other candidates that were executed in the model: name, protocol, tile in bytes and
    /// predicted microseconds, the fastest first.
    pub others: Vec<(&'static str, Protocol, usize, f64)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, detail, protocol, tile, predicted, others } = self;
        f.write_str(algorithm)?;
        if let Some(detail) = detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " by {protocol}, tiles of {tile} B, {predicted:.2} us expected")?;
        for (i, (name, protocol, tile, cost)) in others.iter().enumerate() {
            let lead = if i == 0 { "; instead of" } else { "," };
            write!(f, "{lead} {name}/{protocol}/{tile} {cost:.2} us")?;
        }
        Ok(())
    }
}

/// What a schedule may use on CUDA devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceLimits {
    /// The most channels.
    pub(crate) channels: Channel,
    /// Bytes of the longest LL message.
    pub(crate) ll_bytes: usize,
}

/// Everything besides the call on which a choice depends. It is the same on all ranks of a
/// communicator.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    /// The node of each rank.
    pub(crate) grouping: Grouping,
    /// Bytes of a slot, which are the largest tile.
    pub(crate) slot_bytes: usize,
    /// Slots of a link, which are the credits of a schedule.
    pub(crate) depth: u32,
    /// Whether all links carry LL messages, because no two ranks communicate over TCP.
    pub(crate) ll: bool,
    /// The limits of schedules if all ranks are on CUDA devices. None on the host.
    pub(crate) device: Option<DeviceLimits>,
    /// Whether some ranks of one node communicate over TCP.
    pub(crate) tcp_within_nodes: bool,
    /// Ranks per core on the busiest node, at least 1.
    pub(crate) ranks_per_core: f64,
    /// Schedules of this class or a stricter one are allowed.
    pub(crate) class: Class,
    /// Whether the user set that class. If not, an algorithm that the user names is allowed in any
    /// class.
    pub(crate) explicit_class: bool,
    /// The algorithms that the user allows.
    pub(crate) algorithms: AlgorithmFilter,
    /// The protocol that the user set for all collectives, if any.
    pub(crate) protocol: Option<Protocol>,
    /// The protocols that the user allows by collective, where `protocol` is not set.
    pub(crate) protocols: ProtocolRules,
    /// The numbers of copies of a schedule that may run side by side, which NCCL calls channels.
    pub(crate) copies: Vec<u32>,
}

/// A schedule of more steps than this, of all ranks together, is considered only if no other
/// schedule has fewer steps: to prove and to cost it would take seconds.
const MAX_STEPS: u64 = 1 << 17;

/// The most steps that are executed in the model for one choice, of all candidates together. The
/// first candidate is always executed. Steps are counted, because clocks would differ between
/// ranks.
const MAX_WORK: u64 = 1 << 16;

/// A schedule with a protocol and a tile, and the time in seconds that the model predicts.
struct Candidate {
    schedule: Schedule,
    protocol: Protocol,
    tile: usize,
    cost: f64,
}

impl Tuner {
    /// Chooses the cheapest allowed schedule for `task`. The blocks of a vector call are costed as
    /// if all were as long as the longest.
    ///
    /// To keep a first call fast, a schedule is executed in the model only if its busiest rank
    /// would need less time for its own steps alone than the best schedule so far needs in all, and
    /// only up to a number of steps. Smaller tiles are tried for the best schedule alone.
    pub(crate) fn choose(&self, task: &Task) -> Result<(Schedule, Choice), Error> {
        let mut bounds: Vec<(f64, Schedule, Protocol)> = Vec::new();
        for schedule in self.allowed(task.collective) {
            let geometry = Geometry::new(&schedule, task, self.slot_bytes);
            let Some(protocol) = self.protocol(&schedule, &geometry, task) else { continue };
            bounds.push((self.bound(&schedule, &geometry, task, protocol), schedule, protocol));
        }
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut ranking: Vec<Candidate> = Vec::new();
        let mut best: Option<(f64, FlatSchedule)> = None;
        let mut work = 0;
        for (bound, schedule, protocol) in bounds {
            if best.as_ref().is_some_and(|(cost, _)| *cost <= bound) {
                break;
            }
            let tiles = Geometry::new(&schedule, task, self.slot_bytes).tiles.min(4);
            work += self.steps(&schedule) * tiles;
            if best.is_some() && work > MAX_WORK {
                break;
            }
            let flat = FlatSchedule::new(&schedule);
            let tile = self.slot_bytes;
            let cost = self.cost(&schedule, &flat, task, protocol, tile);
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, flat));
                ranking.insert(0, Candidate { schedule, protocol, tile, cost });
            } else {
                ranking.push(Candidate { schedule, protocol, tile, cost });
            }
        }
        if let (Some((_, flat)), Some(first)) = (&best, ranking.first()) {
            let (schedule, protocol) = (first.schedule.clone(), first.protocol);
            for tile in self.smaller_tiles(&schedule, task, protocol) {
                let cost = self.cost(&schedule, flat, task, protocol, tile);
                ranking.push(Candidate { schedule: schedule.clone(), protocol, tile, cost });
            }
        }
        ranking.sort_by(|a, b| a.cost.total_cmp(&b.cost));
        let entry = |c: &Candidate| (c.schedule.name, c.protocol, c.tile, c.cost * 1e6);
        let others = ranking.iter().skip(1).map(entry).collect();
        let Some(Candidate { schedule, protocol, tile, cost }) = ranking.into_iter().next() else {
            return Err(self.no_candidate(task.collective));
        };
        let (algorithm, detail, predicted) = (schedule.name, schedule.detail.clone(), cost * 1e6);
        Ok((schedule, Choice { algorithm, detail, protocol, tile, predicted, others }))
    }

    /// Whether sends and receives that fit LL messages travel as such, on links that carry LL
    /// messages. The same on all ranks.
    pub(crate) fn transfers_by_ll(&self) -> bool {
        self.device.is_none() && self.protocol != Some(Protocol::Slots)
    }

    /// The choice for a schedule that the caller provides, in tiles of whole slots.
    ///
    /// # Errors
    /// This communicator cannot run the schedule.
    pub(crate) fn admit(&self, schedule: &Schedule, task: &Task) -> Result<Choice, Error> {
        let refused = |what: String| Err(Error::InvalidArgument { what });
        let Schedule { collective, nranks, channels, credit, .. } = *schedule;
        if (collective, nranks) != (task.collective, self.grouping.nranks()) {
            let nranks = self.grouping.nranks();
            return refused(format!(
                "{schedule:?} does not fit {} among {nranks} ranks; pass a schedule of that \
                 collective for that number of ranks",
                task.collective
            ));
        }
        let most = self.device.map_or(MAX_OF_SCHEDULES, |limits| limits.channels);
        if channels > most {
            return refused(format!(
                "{schedule:?} uses {channels} channels, but communicators have {most} for \
                 schedules; pass a schedule of fewer channels"
            ));
        }
        let tile = self.slot_bytes;
        let geometry = Geometry::new(schedule, task, tile);
        let Some(protocol) = self.protocol(schedule, &geometry, task) else {
            return refused(format!(
                "{schedule:?} needs {credit} slots per link, but there are {}; set \
                 MAYPOLE_SLOT_DEPTH to at least {credit} on all ranks",
                self.depth
            ));
        };
        let predicted =
            self.cost(schedule, &FlatSchedule::new(schedule), task, protocol, tile) * 1e6;
        let (algorithm, detail) = (schedule.name, schedule.detail.clone());
        Ok(Choice { algorithm, detail, protocol, tile, predicted, others: Vec::new() })
    }

    /// The schedules that the user allows and that can be proved and costed in reasonable time.
    fn allowed(&self, collective: Collective) -> Vec<Schedule> {
        let mut schedules = candidates(collective, &self.grouping, &self.copies);
        let names: Vec<_> = schedules.iter().map(|s| s.name).collect();
        let allowed = self.algorithms.among(collective, &names);
        schedules.retain(|schedule| {
            let named = self.algorithms.names(collective, schedule.name);
            let of_class = schedule.class <= self.class || (named && !self.explicit_class);
            let channels = self.device.is_none_or(|limits| schedule.channels <= limits.channels);
            allowed.contains(&schedule.name) && of_class && channels
        });
        let least = schedules.iter().map(|s| self.steps(s)).min().unwrap_or(0);
        schedules.retain(|schedule| self.steps(schedule) <= MAX_STEPS.max(least));
        schedules
    }

    /// The steps of all ranks together, if all have as many as the last rank.
    fn steps(&self, schedule: &Schedule) -> u64 {
        let rank = schedule.nranks - 1;
        let steps = |lane| u64::from(schedule.steps(rank, lane));
        u64::from(schedule.nranks) * (0..schedule.lanes(rank)).map(steps).sum::<u64>()
    }

    /// The protocol for `task` by `schedule`: LL if all messages fit. None if links have too few
    /// slots, or if the user requires a protocol for the algorithm that cannot be used.
    fn protocol(&self, schedule: &Schedule, geometry: &Geometry, task: &Task) -> Option<Protocol> {
        let required = self.algorithms.protocol(task.collective, schedule.name);
        let by_rule = || Protocol::required_by(self.protocols.of(task.collective));
        let set = required.or(self.protocol).or_else(by_rule);
        let ll = self.ll && set != Some(Protocol::Slots);
        let size = task.dtype.size();
        let fits = match self.device {
            None => geometry.fits_ll(schedule, size),
            Some(limits) => {
                schedule.credit <= self.depth && geometry.longest() * size <= limits.ll_bytes
            }
        };
        if ll && fits {
            return Some(Protocol::Ll);
        }
        if required == Some(Protocol::Ll) {
            return None;
        }
        (schedule.credit <= self.depth).then_some(Protocol::Slots)
    }

    /// Tiles smaller than a slot, which fill the pipeline better when vectors are short.
    fn smaller_tiles(&self, schedule: &Schedule, task: &Task, protocol: Protocol) -> Vec<usize> {
        let slot = self.slot_bytes;
        let longest = Geometry::new(schedule, task, slot).longest() * task.dtype.size();
        // A tile that no chunk fills acts like the tile that the longest chunk just fills.
        let makes_a_difference = |tile: &usize| *tile >= 4096 && *tile < longest;
        let tiles = [slot / 2, slot / 4].into_iter().filter(makes_a_difference);
        if protocol == Protocol::Ll { Vec::new() } else { tiles.collect() }
    }

    /// A lower bound of the time: the seconds that a rank needs for its own steps, for the busiest
    /// of the ranks that differ most (the first, the last, the root).
    fn bound(
        &self,
        schedule: &Schedule,
        geometry: &Geometry,
        task: &Task,
        protocol: Protocol,
    ) -> f64 {
        let machine = self.machine(protocol);
        let bytes = geometry.longest().min(geometry.tile) * task.dtype.size();
        let ranks = [0, schedule.nranks - 1, task.collective.root().unwrap_or(0)];
        let busy = ranks.map(|rank| machine::busy_seconds(&machine, schedule, rank, bytes));
        busy.into_iter().fold(0.0, f64::max) * geometry.tiles as f64
    }

    /// The seconds that the model predicts.
    fn cost(
        &self,
        schedule: &Schedule,
        flat: &FlatSchedule,
        task: &Task,
        protocol: Protocol,
        tile: usize,
    ) -> f64 {
        let geometry = Geometry::new(schedule, task, tile);
        let bytes = geometry.longest().min(geometry.tile) * task.dtype.size();
        let modelled = self.machine(protocol).cost_flat(flat, bytes, geometry.tiles);
        // Many tiles are extrapolated from few, which may predict too short a time.
        modelled.max(self.bound(schedule, &geometry, task, protocol))
    }

    /// The error if no schedule is allowed.
    fn no_candidate(&self, collective: Collective) -> Error {
        let mut names: Vec<_> =
            candidates(collective, &self.grouping, &[1]).iter().map(|s| s.name).collect();
        names.dedup();
        Error::InvalidUsage {
            what: format!(
                "NCCL_ALGO or the algSelection of the call, NCCL_MIN_NCHANNELS, MAYPOLE_BITS and \
                 MAYPOLE_SLOT_DEPTH together exclude every algorithm for {collective}; allow one \
                 of: {}",
                names.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::call::Extents;
    use crate::config::Config;

    fn tuner(grouping: Grouping) -> Tuner {
        Tuner {
            grouping,
            slot_bytes: 16 << 10,
            depth: 4,
            ll: true,
            device: None,
            tcp_within_nodes: false,
            ranks_per_core: 1.0,
            class: Class::Fast,
            explicit_class: false,
            algorithms: AlgorithmFilter::default(),
            protocol: None,
            protocols: ProtocolRules::default(),
            copies: vec![1],
        }
    }

    fn task(collective: Collective, count: usize) -> Task {
        let (extents, reduction) = (Extents::Even(count), RedOp::Sum.into());
        Task { collective, extents, dtype: DType::Float32, reduction, barrier: false }
    }

    /// The cheapest of all candidates and tiles, each executed in the model.
    fn exhaustive(tuner: &Tuner, task: &Task) -> f64 {
        let costs = tuner.allowed(task.collective).into_iter().flat_map(|schedule| {
            let geometry = Geometry::new(&schedule, task, tuner.slot_bytes);
            let protocol = tuner.protocol(&schedule, &geometry, task);
            let cost = |protocol| {
                let tile = tuner.slot_bytes;
                tuner.cost(&schedule, &FlatSchedule::new(&schedule), task, protocol, tile)
            };
            protocol.map(cost)
        });
        costs.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn schedules_that_are_not_executed_would_not_have_been_chosen() {
        for sizes in [&[2][..], &[5], &[16], &[4, 4], &[3, 5, 2]] {
            let tuner = tuner(Grouping::of_sizes(sizes));
            for collective in Collective::all(1) {
                for count in [1, 100, 3000, 100_000, 5_000_000] {
                    let task = task(collective, count);
                    let (_, choice) = tuner.choose(&task).expect("a choice");
                    let best = exhaustive(&tuner, &task) * 1e6;
                    // Smaller tiles may be better still.
                    assert!(choice.predicted <= best * 1.000_001, "{task:?}: {choice}, {best}");
                }
            }
        }
    }

    #[test]
    fn an_algorithm_with_a_protocol_uses_that_protocol_or_is_excluded() {
        let chosen = |list: &str, count| {
            let algorithms = AlgorithmFilter::select(Collective::AllReduce, list).expect("names");
            let tuner = Tuner { algorithms, ..tuner(Grouping::of_sizes(&[4])) };
            let choice = tuner.choose(&task(Collective::AllReduce, count));
            choice.map(|(_, choice)| (choice.algorithm, choice.protocol)).ok()
        };
        assert_eq!(chosen("ring_LL", 8), Some(("ring", Protocol::Ll)));
        assert_eq!(chosen("ring_SIMPLE", 8), Some(("ring", Protocol::Slots)));
        assert_eq!(chosen("ring_LL", 1 << 20), None);
        assert_eq!(chosen("ring_LL,tree_SIMPLE", 1 << 20), Some(("tree", Protocol::Slots)));
        assert_eq!(chosen("ring", 1 << 20), Some(("ring", Protocol::Slots)));
        // The protocol of the algorithm takes precedence over that of all calls.
        let slots = Tuner {
            protocol: Some(Protocol::Slots),
            algorithms: AlgorithmFilter::select(Collective::AllReduce, "ring_LL").expect("a name"),
            ..tuner(Grouping::of_sizes(&[4]))
        };
        let (_, choice) = slots.choose(&task(Collective::AllReduce, 8)).expect("a choice");
        assert_eq!(choice.protocol, Protocol::Ll);
    }

    #[test]
    fn a_collective_may_have_a_protocol_of_its_own() {
        let chosen = |rules: &str, protocol, collective| {
            let (config, _) = Config::read(|name| (name == "NCCL_PROTO").then(|| rules.into()));
            let protocols = config.nccl_protocol;
            let tuner = Tuner { protocol, protocols, ..tuner(Grouping::of_sizes(&[4])) };
            tuner.choose(&task(collective, 2)).expect("a choice").1.protocol
        };
        let (reduce, gather) = (Collective::AllReduce, Collective::AllGather);
        let rules = "allreduce:Simple;LL";
        assert_eq!(chosen(rules, None, reduce), Protocol::Slots);
        assert_eq!(chosen(rules, None, gather), Protocol::Ll);
        assert_eq!(chosen("allgather:Simple", None, reduce), Protocol::Ll);
        // What is set for all collectives takes precedence.
        assert_eq!(chosen(rules, Some(Protocol::Slots), gather), Protocol::Slots);
    }

    #[test]
    fn hierarchies_are_chosen_for_long_vectors_on_several_nodes() {
        let long = task(Collective::AllReduce, 4 << 20);
        let chosen = |sizes: &[u32]| {
            let (schedule, choice) =
                tuner(Grouping::of_sizes(sizes)).choose(&long).expect("a choice");
            assert_eq!(schedule.detail, choice.detail);
            schedule.name
        };
        assert!(chosen(&[4, 4]).starts_with("hier"), "{}", chosen(&[4, 4]));
        assert!(!chosen(&[8]).starts_with("hier"), "{}", chosen(&[8]));
    }

    /// Prints how long a first choice takes. Run it by
    /// `cargo test --release -- --ignored --nocapture first_choices`.
    #[test]
    #[ignore = "a measurement"]
    fn first_choices() {
        for (name, grouping) in
            [("64", Grouping::of_sizes(&[64])), ("8 x 8", Grouping::of_sizes(&[8; 8]))]
        {
            let tuner = tuner(grouping);
            for collective in Collective::all(0) {
                for count in [2, 1 << 14, 1 << 22] {
                    let started = std::time::Instant::now();
                    let (_, choice) = tuner.choose(&task(collective, count)).expect("a choice");
                    let took = started.elapsed();
                    let costed = choice.others.len() + 1;
                    let best = choice.algorithm;
                    println!(
                        "{name} ranks, {collective} of {count}: {best}, {costed} costed in \
                         {took:.1?}"
                    );
                }
            }
        }
    }
}
