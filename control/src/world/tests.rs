//! Many worlds, and those that once broke an invariant.

use std::time::Duration;

use super::join_script::JoinScript;
use super::joins::JoinWorld;
use super::run::World;
use super::script::{Action, CallKind, Disturbance, Script};
use crate::time::Time;
use crate::verdict::Verdict;

/// Runs the worlds of these seeds, and shrinks the first that breaks an invariant.
fn run_worlds(seeds: impl Iterator<Item = u64>, most_ranks: u32) -> Statistics {
    let mut statistics = Statistics::default();
    for seed in seeds {
        let script = Script::random(seed, most_ranks);
        match World::run(&script) {
            Ok(world) => statistics.add(&world),
            Err(broken) => {
                let run = |script: &Script| World::run(script).err();
                let (script, broken) = shrink((script, broken), tries(), Script::shorter, run);
                panic!("world {seed}: {broken}\n{script:#?}");
            }
        }
    }
    statistics
}

/// What happened in many worlds.
#[derive(Debug, Default)]
struct Statistics {
    worlds: u64,
    events: u64,
    ended: u64,
    reports: u64,
}

impl Statistics {
    fn add(&mut self, world: &World) {
        self.worlds += 1;
        self.events += world.handled;
        self.ended += u64::from(world.ranks.iter().any(|rank| rank.ended.is_some()));
        self.reports += world.ranks.iter().map(|rank| rank.reports).sum::<u64>();
    }
}

/// The shortest script that still breaks an invariant, as far as it is found. `run` runs one, and
/// returns the invariant that it breaks.
fn shrink<S>(
    (mut script, mut broken): (S, String),
    most: u64,
    shorter: impl Fn(&S) -> Vec<S>,
    run: impl Fn(&S) -> Option<String>,
) -> (S, String) {
    let mut tries = 0;
    'shorter: loop {
        for shorter in shorter(&script) {
            tries += 1;
            if tries > most {
                break 'shorter;
            }
            if let Some(error) = run(&shorter) {
                (script, broken) = (shorter, error);
                continue 'shorter;
            }
        }
        break;
    }
    (script, broken)
}

/// How many scripts may be tried to shrink one.
fn tries() -> u64 {
    number("MAYPOLE_SHRINK", 3000)
}

/// The number in an environment variable, or another.
fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn many_worlds_keep_all_invariants() {
    let worlds = number("MAYPOLE_WORLDS", 2000);
    let first = number("MAYPOLE_WORLD", 0);
    let statistics = run_worlds(first..first + worlds, 64);
    println!("{statistics:?}");
    // The worlds are of use only if ranks are told of failures in many of them, and not in all.
    assert!(worlds < 100 || statistics.ended > worlds / 10 && statistics.ended < worlds);
    assert!(worlds < 100 || statistics.reports > 0);
}

#[test]
fn many_joins_keep_all_invariants() {
    let worlds = number("MAYPOLE_WORLDS", 2000);
    let first = number("MAYPOLE_WORLD", 0);
    let mut events = 0;
    for seed in first..first + worlds {
        let script = JoinScript::random(seed);
        match JoinWorld::run(&script) {
            Ok(world) => events += world.handled,
            Err(broken) => {
                let run = |script: &JoinScript| JoinWorld::run(script).err();
                let (script, broken) = shrink((script, broken), tries(), JoinScript::shorter, run);
                panic!("world {seed}: {broken}\n{script:#?}");
            }
        }
    }
    println!("{worlds} worlds, {events} events");
}

/// A world of joins that fails, here by definition, is shrunk to the least that still fails.
#[test]
fn a_script_of_joins_is_shrunk_to_what_matters() {
    let broken = |script: &JoinScript| {
        let matters = script.nranks >= 3 && script.flaws.len() == 1 && script.processes.len() >= 3;
        matters.then(|| String::from("it fails"))
    };
    let scripts = (0..).map(JoinScript::random);
    let mut failing = scripts.filter(|script| script.nranks > 9 && broken(script).is_some());
    let script = failing.next().expect("one of many");
    let (least, _) = shrink((script, String::new()), 3000, JoinScript::shorter, broken);
    assert!(broken(&least).is_some() && least.shorter().iter().all(|it| broken(it).is_none()));
    assert_eq!(least.nroots, 1);
    assert!(least.processes.iter().all(|(start, _)| start.is_zero()), "{least:?}");
}

/// Rank 0 dies after its part of a call. Rank 2, which begins that call only when it knows of the
/// death, still gets what was sent; it is not told that the call failed.
#[test]
fn what_a_rank_sent_before_it_died_counts() {
    let broadcast = Action::Call(CallKind::Broadcast(0), 1);
    let mut script = Script {
        seed: 1,
        hosts: vec![0, 0, 1],
        programs: vec![vec![broadcast]; 3],
        disturbances: vec![(Duration::from_millis(100), Disturbance::Kill(0, Duration::ZERO))],
        timeout: None,
        delay: Duration::from_millis(1),
    };
    script.programs[0].push(Action::Compute(Duration::from_secs(100)));
    script.programs[2].insert(0, Action::Compute(Duration::from_millis(500)));
    let world = World::run(&script).unwrap();
    for rank in &world.ranks[1..] {
        assert_eq!((rank.calls.sequence, &rank.failure), (1, &None));
    }
    let verdict = world.ranks[2].core.as_ref().and_then(|core| core.verdict());
    assert!(matches!(verdict, Some(Verdict::Dead { rank: 0, .. })), "{verdict:?}");
}

/// Rank 0 dies in a call. Rank 1, which needs nothing of it, stays and makes no further call: the
/// wait of rank 2 for rank 1 ends all the same.
#[test]
fn a_death_ends_the_wait_for_a_rank_that_lives_after_a_time() {
    let mut script = Script {
        seed: 1,
        hosts: vec![0; 3],
        programs: vec![vec![Action::Compute(Duration::from_secs(200))]; 3],
        disturbances: vec![(Duration::from_secs(1), Disturbance::Kill(0, Duration::ZERO))],
        timeout: None,
        delay: Duration::from_millis(1),
    };
    script.programs[2] = vec![Action::Call(CallKind::Broadcast(1), 1)];
    let world = World::run(&script).unwrap();
    let failure = &world.ranks[2].failure;
    assert!(matches!(failure, Some(Verdict::Dead { rank: 0, .. })), "{failure:?}");
}

/// Three ranks on one host and four on another. Rank 3, which has no neighbour on its own host,
/// dies, and a child that it forked holds its connections for longer than anyone should wait.
#[test]
fn ranks_of_its_host_tell_of_a_death_that_its_neighbours_cannot_see() {
    let program = vec![Action::Call(CallKind::AllReduce, 1), Action::Call(CallKind::AllReduce, 2)];
    let mut script = Script {
        seed: 1,
        hosts: vec![0, 0, 0, 1, 1, 1, 1],
        programs: vec![program; 7],
        disturbances: Vec::new(),
        timeout: None,
        delay: Duration::from_millis(1),
    };
    let died = Duration::from_secs(1);
    script.programs[3].insert(1, Action::Compute(Duration::from_secs(100)));
    script.disturbances.push((died, Disturbance::Kill(3, Duration::from_secs(75))));
    let world = World::run(&script).unwrap();
    for (rank, simulated) in world.ranks.iter().enumerate().filter(|(rank, _)| *rank != 3) {
        let is_dead = matches!(simulated.failure, Some(Verdict::Dead { rank: 3, .. }));
        assert!(is_dead, "rank {rank}: {:?}", simulated.failure);
    }
    let took = world.now.since(Time::START + died);
    assert!(took < Duration::from_secs(5), "the ranks knew after {took:?} of simulated time");
}

/// Rank 0 is stopped when it knows that the process of rank 2 has ended and has not yet read that
/// rank 2 left before. When it goes on, all of that has come long ago, and is read in some order.
/// World 61417 once told rank 2 as dead.
#[test]
fn a_rank_that_was_stopped_reads_what_has_come_before_a_deadline_counts() {
    for seed in 0..200 {
        let mut script = Script {
            seed,
            hosts: vec![0; 7],
            programs: vec![vec![Action::Compute(Duration::from_millis(40))]; 7],
            disturbances: Vec::new(),
            timeout: None,
            delay: Duration::from_millis(50),
        };
        script.programs[2] = vec![Action::Exit];
        let stop = Disturbance::Stop(0, Duration::from_secs(6));
        script.disturbances.push((Duration::from_millis(7), stop));
        World::run(&script).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

/// Rank 1 waits for rank 2, and is stopped while rank 2 exits in order. When it goes on, its thread
/// asks why the wait takes so long before the farewell of rank 2 is read.
#[test]
fn a_rank_that_exits_in_order_is_not_told_dead_by_an_inquiry() {
    for seed in 0..16 {
        let mut script = Script {
            seed,
            hosts: vec![0; 3],
            programs: vec![vec![Action::Compute(Duration::from_secs(10))]; 3],
            disturbances: Vec::new(),
            timeout: None,
            delay: Duration::from_millis(1),
        };
        script.programs[1] = vec![Action::Call(CallKind::Broadcast(2), 1)];
        script.programs[2] = vec![Action::Compute(Duration::from_secs(2)), Action::Exit];
        let stop = Disturbance::Stop(1, Duration::from_secs(5));
        script.disturbances.push((Duration::from_millis(500), stop));
        let world = World::run(&script).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        assert_eq!(world.ranks[1].failure, Some(Verdict::Left { rank: 2 }), "seed {seed}");
    }
}

/// To run it: `cargo test --release -p maypole-control -- --ignored worlds --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn worlds_of_a_thousand_ranks_keep_all_invariants() {
    for seed in 0..4 {
        let mut script = Script::random(seed, 9);
        script.resize(1024);
        match World::run(&script) {
            Ok(world) => println!("world {seed}: {} events", world.handled),
            Err(broken) => panic!("world {seed} of 1024 ranks: {broken}"),
        }
    }
}
