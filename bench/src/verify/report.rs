//! Proves a list of schedules on all cores, and prints one row for each algorithm.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use maypole_algorithms::verify::{Counterexample, ProofFacts, prove};
use maypole_algorithms::{Class, Schedule};

use crate::status;

/// The sum over the proofs of one row.
struct ProofTotal {
    class: Class,
    ranks: (u32, u32),
    proofs: u32,
    executions: u64,
    steps: u64,
    seconds: f64,
}

impl Default for ProofTotal {
    fn default() -> Self {
        // The best class and an empty range, which every proof may extend.
        Self {
            class: Class::Canonical,
            ranks: (u32::MAX, 0),
            proofs: 0,
            executions: 0,
            steps: 0,
            seconds: 0.0,
        }
    }
}

impl ProofTotal {
    fn add(&mut self, nranks: u32, facts: &ProofFacts, seconds: f64) {
        self.class = self.class.max(facts.class);
        self.ranks = (self.ranks.0.min(nranks), self.ranks.1.max(nranks));
        self.proofs += 1;
        self.executions += u64::from(facts.executions);
        self.steps += facts.steps;
        self.seconds += seconds;
    }

    fn line(&self, collective: &str, algorithm: &str) -> String {
        let Self { class, ranks: (first, last), proofs, executions, steps, seconds } = self;
        let ranks = format!("{first}..{last}");
        format!(
            "{collective:<14}  {algorithm:<20}  {class:<9}  {ranks:>9}  {proofs:>6}  \
             {executions:>10}  {steps:>12}  {seconds:>8.2}"
        )
    }
}

/// The key by which rows are sorted: the part of the proof suite, then the index of the algorithm
/// in it.
type RowKey = (u8, usize);

/// Proves all schedules, each given with its part of the proof suite, and prints the table. Returns
/// the exit status.
pub(super) fn prove_all(schedules: Vec<(u8, Schedule)>) -> u8 {
    let mut names: Vec<(u8, &str, &str)> = Vec::new();
    let mut tasks: Vec<(RowKey, Schedule)> = Vec::new();
    for (part, schedule) in schedules {
        let name = (part, schedule.collective.name(), schedule.name);
        let index = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        tasks.push(((part, index), schedule));
    }
    // The longest proofs first, so that the cores end at about the same time.
    tasks.sort_by_cached_key(|(_, schedule)| std::cmp::Reverse(steps(schedule)));
    let totals = Mutex::new(BTreeMap::<RowKey, ProofTotal>::new());
    let start = Instant::now();
    if let Some(counterexample) = prove_on_all_cores(&tasks, &totals) {
        eprintln!("maypole: not proved: {counterexample}");
        return status::DISPROVED;
    }
    println!(
        "{:<14}  {:<20}  {:<9}  {:>9}  {:>6}  {:>10}  {:>12}  {:>8}",
        "collective", "algorithm", "class", "ranks", "proofs", "executions", "steps", "seconds"
    );
    let mut sum = ProofTotal::default();
    for ((_, index), total) in totals.into_inner().expect("no thread panicked") {
        let (_, collective, algorithm) = names[index];
        println!("{}", total.line(collective, algorithm));
        sum.proofs += total.proofs;
        sum.executions += total.executions;
        sum.steps += total.steps;
    }
    println!(
        "proved: {} schedules, {} executions, {} steps, {:.2} s",
        sum.proofs,
        sum.executions,
        sum.steps,
        start.elapsed().as_secs_f64()
    );
    status::FINE
}

/// Proves schedules until all are proved or one is refuted. Returns the counterexample.
fn prove_on_all_cores(
    tasks: &[(RowKey, Schedule)],
    totals: &Mutex<BTreeMap<RowKey, ProofTotal>>,
) -> Option<Box<Counterexample>> {
    let next = Mutex::new(tasks.iter());
    let refuted = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(tasks.len()) {
            scope.spawn(|| {
                let take_next = || next.lock().expect("no thread panicked").next();
                while let Some((row, schedule)) = take_next() {
                    let start = Instant::now();
                    match prove(schedule.clone()) {
                        Ok(proved) => {
                            let seconds = start.elapsed().as_secs_f64();
                            let mut totals = totals.lock().expect("no thread panicked");
                            let total = totals.entry(*row).or_default();
                            total.add(schedule.nranks, proved.facts(), seconds);
                        }
                        Err(counterexample) => {
                            *refuted.lock().expect("no thread panicked") = Some(counterexample);
                            *next.lock().expect("no thread panicked") = [].iter();
                        }
                    }
                }
            });
        }
    });
    refuted.into_inner().expect("no thread panicked")
}

/// The number of steps of all ranks.
fn steps(schedule: &Schedule) -> u64 {
    let of_rank = |rank| (0..schedule.lanes(rank)).map(move |lane| schedule.steps(rank, lane));
    (0..schedule.nranks).flat_map(of_rank).map(u64::from).sum()
}
