//! Proves a list of schedules on all cores, and prints a row for each algorithm.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use maypole_algorithms::verify::{Counterexample, ProofFacts, prove};
use maypole_algorithms::{Class, Schedule};

use crate::status;

/// The sum over the proofs of a row.
struct Total {
    class: Class,
    ranks: (u32, u32),
    proofs: u32,
    executions: u64,
    steps: u64,
    seconds: f64,
}

impl Default for Total {
    fn default() -> Self {
        // The best and the narrowest; every proof may change it.
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

impl Total {
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
            "{collective:<14}  {algorithm:<20}  {class:<9}  {ranks:>9}  {proofs:>6}  {executions:>10}  {steps:>12}  {seconds:>8.2}"
        )
    }
}

/// What the rows are sorted by: the part of the list, then the place of the algorithm in it.
type Row = (u8, usize);

/// Proves all of `schedules`, each with the part of the list that it is from, and prints the table; returns the exit status.
pub(super) fn prove_all(schedules: Vec<(u8, Schedule)>) -> u8 {
    let mut names: Vec<(u8, &str, &str)> = Vec::new();
    let mut tasks: Vec<(Row, Schedule)> = Vec::new();
    for (part, schedule) in schedules {
        let name = (part, schedule.collective.name(), schedule.name);
        let place = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        tasks.push(((part, place), schedule));
    }
    // The longest first, so that no core is left with one at the end.
    tasks.sort_by_cached_key(|(_, schedule)| std::cmp::Reverse(steps(schedule)));
    let totals = Mutex::new(BTreeMap::<Row, Total>::new());
    let start = Instant::now();
    if let Some(counterexample) = each_on_all_cores(&tasks, &totals) {
        eprintln!("maypole: not proved: {counterexample}");
        return status::DISPROVED;
    }
    println!(
        "{:<14}  {:<20}  {:<9}  {:>9}  {:>6}  {:>10}  {:>12}  {:>8}",
        "collective", "algorithm", "class", "ranks", "proofs", "executions", "steps", "seconds"
    );
    let mut sum = Total::default();
    for ((_, place), total) in totals.into_inner().expect("no thread panicked") {
        let (_, collective, algorithm) = names[place];
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

/// Proves until all are proved or one is refuted, which is returned.
fn each_on_all_cores(
    tasks: &[(Row, Schedule)],
    totals: &Mutex<BTreeMap<Row, Total>>,
) -> Option<Box<Counterexample>> {
    let next = AtomicUsize::new(0);
    let refuted = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(tasks.len()) {
            scope.spawn(|| {
                // Relaxed: only the number counts, what it stands for was there before the thread.
                while let Some((row, schedule)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
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
                            next.store(tasks.len(), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    refuted.into_inner().expect("no thread panicked")
}

/// Steps of all ranks together.
fn steps(schedule: &Schedule) -> u64 {
    let of = |rank| (0..schedule.lanes(rank)).map(move |lane| schedule.steps(rank, lane));
    (0..schedule.nranks).flat_map(of).map(u64::from).sum()
}
