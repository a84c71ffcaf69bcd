//! Thousands of random calls on real memory: every collective, algorithm, hierarchy, type,
//! operation, root, size, placement and protocol, on 1 to 16 ranks, as threads and as processes,
//! over every kind of link.
//!
//! Each result is compared bit for bit with a scalar evaluation of the tree that was proved of its
//! schedule. Memory beside the buffers, and memory that is only sent, must not change. All numbers
//! follow from a seed that a failure prints. `MAYPOLE_RANDOM_CALLS` sets the number of calls.

use std::time::Duration;

use maypole_algorithms::topology::Grouping;
use maypole_algorithms::{Collective, Rank, Schedule};

use super::case::{Case, plan};
use super::{Random, as_processes, as_ranks_within, over_tcp, vector};
use crate::call::Task;
use crate::comm::Communicator;
use crate::config::{BitsSetting, Config, NodeLabels};
use crate::geometry::Geometry;
use crate::tune::{Protocol, candidates};

/// The number of calls in all, unless the environment sets it.
const CALLS: u32 = 10_000;

/// The time limit for the calls of one communicator, for a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// Schedules with more steps, over all ranks, are left out: their proofs take too long.
const MOST_STEPS: u32 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Medium {
    /// Ranks read each other's memory.
    Local,
    /// Ranks share memory by descriptors.
    Shared,
    Tcp,
}

/// The calls of one communicator. All random choices follow from the seed.
#[derive(Clone, Copy, Debug)]
struct Session {
    nranks: u32,
    medium: Medium,
    calls: u32,
    seed: u64,
}

const AS_THREADS: [(Medium, &[u32]); 3] = [
    (Medium::Local, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    (Medium::Shared, &[2, 3, 5, 8, 12]),
    (Medium::Tcp, &[2, 3, 4, 7, 10]),
];

const AS_PROCESSES: [(Medium, &[u32]); 2] =
    [(Medium::Shared, &[1, 2, 3, 4, 6, 9, 16]), (Medium::Tcp, &[2, 4, 5, 8])];

fn sessions(shapes: &[(Medium, &'static [u32])], part_of_all: u32) -> Vec<Session> {
    let wanted = std::env::var("MAYPOLE_RANDOM_CALLS").ok();
    let all = wanted.map_or(CALLS, |text| text.parse().expect("a number of calls"));
    let pairs =
        shapes.iter().flat_map(|&(medium, counts)| counts.iter().map(move |n| (medium, *n)));
    let pairs: Vec<_> = pairs.collect();
    let calls = (all / 100 * part_of_all).div_ceil(pairs.len() as u32);
    let session = |(i, (medium, nranks)): (u64, (Medium, u32))| Session {
        nranks,
        medium,
        calls,
        seed: i * 1009 + 7,
    };
    (0_u64..).zip(pairs).map(session).collect()
}

#[test]
fn random_calls_among_threads() {
    for session in sessions(&AS_THREADS, 70) {
        let play = move |comm: &mut Communicator| session.play(comm);
        for result in as_ranks_within(PATIENCE, session.nranks, &session.config(), play) {
            result.unwrap_or_else(|why| panic!("{session:?}: {why}"));
        }
    }
}

#[test]
fn random_calls_among_processes() {
    for session in sessions(&AS_PROCESSES, 30) {
        session.run_as_processes();
    }
}

/// The body of a rank process, not a test.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((text, id)) = as_processes::session() else { return };
    let mut words = text.split(' ').map(|word| word.parse::<u64>().expect("a number"));
    let mut next = || words.next().expect("five numbers");
    let (rank, nranks) = (next() as Rank, next() as u32);
    let medium = if next() == 0 { Medium::Shared } else { Medium::Tcp };
    let session = Session { nranks, medium, calls: next() as u32, seed: next() };
    let config = session.config();
    let comm = Communicator::builder(&id).rank(rank, nranks).config(config.clone()).build();
    let mut comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
    session.play(&mut comm).unwrap_or_else(|why| panic!("{session:?}: {why}"));
}

impl Session {
    fn config(&self) -> Config {
        let mut random = Random(self.seed);
        let base = match self.medium {
            Medium::Local => Config::default(),
            Medium::Shared => Config { p2p_disable: true, ..Config::default() },
            Medium::Tcp => over_tcp(1 + random.below(2) as u32),
        };
        let mut labels = || (0..self.nranks).map(|_| random.below(3).to_string()).collect();
        let nodes = NodeLabels { labels: labels() };
        let split = self.seed.is_multiple_of(2);
        Config {
            slot_bytes: random.pick(&[None, Some(256), Some(4096), Some(16_384)]),
            nodes: split.then_some(nodes),
            // The tuner chooses among all algorithms.
            bits: BitsSetting::Fast,
            ..base
        }
    }

    fn run_as_processes(&self) {
        let Self { nranks, medium, calls, seed } = *self;
        let medium = u32::from(medium == Medium::Tcp);
        as_processes::run("comm::tests::random::rank", nranks, PATIENCE, self, |rank| {
            format!("{rank} {nranks} {medium} {calls} {seed}")
        });
    }

    /// The calls of one rank.
    fn play(&self, comm: &mut Communicator) -> Result<(), String> {
        let mut random = Random(self.seed << 20);
        let mut calls = 0;
        while calls < self.calls {
            let draw = random.below(100);
            calls += match draw {
                0..3 => {
                    comm.barrier().map_err(|e| format!("barrier: {e}"))?;
                    1
                }
                3..5 => {
                    vector::round(comm, random.below(1 << 30));
                    vector::CALLS
                }
                _ => {
                    let tuned = draw < 20;
                    self.even(comm, &mut random, tuned)
                        .map_err(|why| format!("rank {}, call {calls}: {why}", comm.rank()))?;
                    1
                }
            };
        }
        Ok(())
    }

    /// One call by a random schedule, or by one that the tuner chooses.
    fn even(
        &self,
        comm: &mut Communicator,
        random: &mut Random,
        tuned: bool,
    ) -> Result<(), String> {
        let root = random.below(self.nranks.into()) as Rank;
        let collective = random.pick(&Collective::all(root));
        let mut case = Case::random(random, collective);
        let most = 300_000 / (self.nranks * collective.output_chunks(self.nranks, 1)) as usize;
        // A large call now and then.
        let bound = if random.below(4) == 0 { most } else { most.min(1000) };
        case.count = case.count.min(bound);
        let call = case.call(comm.rank());
        let schedule = if tuned || case.count == 0 {
            let chosen = comm.tuner.choose(&Task::from(&call)).map_err(|e| e.to_string())?.0;
            // It may have been planned by a random schedule before.
            self.plan(comm, random, chosen, &case)
        } else {
            let grouping = self.grouping(comm, random);
            let mut known = candidates(collective, &grouping, &[random.pick(&[1, 1, 1, 2, 3])]);
            known.retain(|s| steps(s) <= MOST_STEPS && s.credit <= comm.tuner.depth);
            let at = random.below(known.len() as u64) as usize;
            self.plan(comm, random, known.swap_remove(at), &case)
        };
        let shown = format!("{case:?} by {schedule:?}");
        case.run(comm, &schedule).map_err(|why| format!("{shown}: {why}"))
    }

    fn plan(
        &self,
        comm: &mut Communicator,
        random: &mut Random,
        schedule: Schedule,
        case: &Case,
    ) -> Schedule {
        let slot = comm.tuner.slot_bytes;
        let tile = random.pick(&[slot, slot, slot / 2]);
        let geometry = Geometry::new(&schedule, &Task::from(&case.call(comm.rank())), slot);
        let fits = comm.tuner.ll && geometry.fits_ll(&schedule, case.dtype.size());
        let line = fits && random.below(2) == 0;
        if case.count > 0 {
            let protocol = if line { Protocol::Ll } else { Protocol::Slots };
            plan(comm, schedule.clone(), case, protocol, tile);
        }
        schedule
    }

    /// The nodes of the communicator, or random ones.
    fn grouping(&self, comm: &Communicator, random: &mut Random) -> Grouping {
        let nodes = 1 + random.below(4);
        let size = u64::from(self.nranks).div_ceil(nodes);
        let labels: Vec<u64> = match random.below(3) {
            0 => return comm.tuner.grouping.clone(),
            1 => (0..u64::from(self.nranks)).map(|rank| rank / size).collect(),
            _ => (0..self.nranks).map(|_| random.below(nodes)).collect(),
        };
        Grouping::new(labels)
    }
}

fn steps(schedule: &Schedule) -> u32 {
    let rank = |rank| (0..schedule.lanes(rank)).map(|lane| schedule.steps(rank, lane)).sum::<u32>();
    (0..schedule.nranks).map(rank).sum()
}
