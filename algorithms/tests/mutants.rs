//! Mutants, schedules with one fault: the verifier rejects each of them, or it is right when
//! executed on numbers.

mod concrete;
mod on_all_cores;

use std::collections::BTreeMap;

use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::hierarchy::channels;
use maypole_algorithms::mutate::{Mutant, mutants};
use maypole_algorithms::schedule::StepTable;
use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
use maypole_algorithms::verify::{MessageSemantics, Violation, prove};
use maypole_algorithms::{Collective, Schedule, Step, proof_suite};
use on_all_cores::on_all_cores;

/// Random executions on numbers for per_schedule mutant that is executed.
const RUNS: usize = 12;

#[test]
fn ten_thousand_mutants_are_rejected_or_harmless() {
    judge_mutants(10_000, 0);
}

/// Other mutants than those of the test above.
#[test]
#[ignore = "takes minutes"]
fn two_hundred_thousand_mutants_are_rejected_or_harmless() {
    judge_mutants(200_000, 1 << 32);
}

/// Makes at least `count` mutants, equally many of per_schedule schedule, and judges them.
fn judge_mutants(count: usize, seed: u64) {
    let schedules = schedules();
    let per_schedule = count.div_ceil(schedules.len());
    let tallies = on_all_cores(&schedules, |number, schedule| {
        let mut tally = Tally::default();
        tally.judge_mutants(schedule, per_schedule, seed + number as u64);
        tally
    });
    let tally = tallies.into_iter().fold(Tally::default(), Tally::merge);
    println!("{} schedules, {tally}", schedules.len());
    assert!(tally.made() >= count, "{} mutants are too few", tally.made());
}

/// How many mutants were rejected, and how many were right.
#[derive(Default)]
struct Tally {
    /// By kind of fault: all mutants, and those that were proved and executed correctly.
    kinds: BTreeMap<&'static str, (usize, usize)>,
    /// By violation the number of mutants that were rejected for it.
    rejected: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Proves and executes `schedule`, then makes `per_schedule` mutants of it and judges them.
    fn judge_mutants(&mut self, schedule: &Schedule, per_schedule: usize, seed: u64) {
        let proof =
            prove(schedule.clone()).unwrap_or_else(|counterexample| panic!("{counterexample}"));
        concrete::check(schedule, Some(&proof), 1, RUNS)
            .unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
        for mutant in mutants(schedule, seed, per_schedule) {
            if self.judge(&mutant) {
                // A second fault may break what the first one left right.
                for again in mutants(&mutant.schedule, seed, 2) {
                    self.judge(&again);
                }
            }
        }
    }

    /// Whether the mutant is proved. If it is, it must execute correctly; if it is rejected for a
    /// visible reason, some execution must fail.
    fn judge(&mut self, mutant: &Mutant) -> bool {
        let (made, equivalent) = self.kinds.entry(mutant.kind).or_default();
        *made += 1;
        match prove(mutant.schedule.clone()) {
            Err(counterexample) => {
                *self.rejected.entry(kind(&counterexample.violation)).or_default() += 1;
                if is_visible(&counterexample.violation) {
                    let ran = concrete::check(&mutant.schedule, None, 7, RUNS);
                    assert!(
                        ran.is_err(),
                        "{mutant:?} executes correctly, but was rejected: {counterexample}"
                    );
                }
                false
            }
            Ok(proof) => {
                *equivalent += 1;
                concrete::check(&mutant.schedule, Some(&proof), 7, RUNS)
                    .unwrap_or_else(|what| panic!("proved, but wrong: {mutant:?}: {what}"));
                true
            }
        }
    }

    fn made(&self) -> usize {
        self.kinds.values().map(|(made, _)| made).sum()
    }

    fn merge(mut self, other: Self) -> Self {
        for (kind, (made, equivalent)) in other.kinds {
            let sum = self.kinds.entry(kind).or_default();
            *sum = (sum.0 + made, sum.1 + equivalent);
        }
        for (kind, count) in other.rejected {
            *self.rejected.entry(kind).or_default() += count;
        }
        self
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let equivalent: usize = self.kinds.values().map(|(_, equivalent)| equivalent).sum();
        writeln!(f, "{} mutants, {equivalent} equivalent, the others rejected", self.made())?;
        for (kind, (made, equivalent)) in &self.kinds {
            writeln!(f, "  {kind:<26} {made:>6} mutants, {equivalent:>5} equivalent")?;
        }
        write!(f, "  rejected for {:?}", self.rejected)
    }
}

/// A broadcast down a chain with three lanes per rank: one receives, one sends on, one copies to
/// the output. The receiving lane closes per_schedule tile when the others are done with its
/// scratch.
fn chain(nranks: u32) -> Schedule {
    let rank = |rank: u32| {
        if rank == 0 {
            return vec![vec![Step::new([input(0)], [output(0), peer(1, 0)])]];
        }
        let next = if rank + 1 < nranks { peer(rank + 1, 0) } else { scratch(2) };
        vec![
            vec![
                Step::new([peer(rank - 1, 0)], [scratch(0)]),
                Step::new([scratch(0)], [scratch(1)]).after(1, 0).after(2, 0),
            ],
            vec![Step::new([scratch(0)], [next]).after(0, 0)],
            vec![Step::new([scratch(0)], [output(0)]).after(0, 0)],
        ]
    };
    let table = StepTable((0..nranks).map(rank).collect());
    let collective = Collective::Broadcast { root: 0 };
    Schedule::new("chain", collective, nranks, 1, table).with_scratch(3)
}

fn schedules() -> Vec<Schedule> {
    let mut schedules: Vec<_> = (2..=9).map(chain).collect();
    for generator in all() {
        for nranks in 2..=9 {
            schedules.push(generator.schedule(generator.collective_with_root(nranks / 2), nranks));
        }
    }
    schedules.extend(hierarchies().chain(side_by_side()));
    schedules
}

/// The small hierarchies of the list: the executor on numbers is simple, and slow where there are
/// many lanes.
fn hierarchies() -> impl Iterator<Item = Schedule> {
    proof_suite::hierarchies().filter(is_small)
}

/// The small ones of all generators twice side by side, as on two channels.
fn side_by_side() -> impl Iterator<Item = Schedule> {
    let twice = |generator: &Generator| {
        channels::schedule(&generator.schedule(generator.collective_with_root(1), 3), 2)
    };
    all().map(twice).filter(is_small)
}

fn is_small(schedule: &Schedule) -> bool {
    let steps_of = |rank| (0..schedule.lanes(rank)).map(move |lane| schedule.steps(rank, lane));
    (0..schedule.nranks).flat_map(steps_of).sum::<u32>() <= 60
}

/// Whether every execution on numbers must show the violation.
fn is_visible(violation: &Violation) -> bool {
    matches!(
        violation,
        Violation::Unbalanced { .. }
            | Violation::Deadlock { semantics: MessageSemantics::Buffered, .. }
            | Violation::Postcondition { .. }
            | Violation::Disagreement { .. }
            | Violation::NotCanonical { .. }
    )
}

fn kind(violation: &Violation) -> &'static str {
    match violation {
        Violation::Malformed(_) => "malformed",
        Violation::Unbalanced { .. } => "unbalanced",
        Violation::Deadlock { .. } => "deadlock",
        Violation::Undefined(_) => "undefined",
        Violation::Overwritten(_) => "overwritten",
        Violation::Algebra(_) => "algebra",
        Violation::Race { .. } => "race",
        Violation::Postcondition { .. } => "postcondition",
        Violation::Disagreement { .. } => "disagreement",
        Violation::NotCanonical { .. } => "not canonical",
    }
}
