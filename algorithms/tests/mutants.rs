//! Schedules with one fault: the verifier rejects each, or it is harmless when run on numbers.

mod concrete;

use std::collections::BTreeMap;

use maypole_algorithms::collective::all;
use maypole_algorithms::mutate::{Mutant, mutants};
use maypole_algorithms::schedule::Table;
use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
use maypole_algorithms::verify::{Semantics, Violation, prove};
use maypole_algorithms::{Collective, Schedule, Step};

const MUTANTS: usize = 20;
const RUNS: usize = 12;

#[test]
fn a_mutant_is_rejected_or_harmless() {
    let mut tally = Tally::default();
    for (i, schedule) in schedules().into_iter().enumerate() {
        let proof =
            prove(schedule.clone()).unwrap_or_else(|counterexample| panic!("{counterexample}"));
        concrete::check(&schedule, Some(&proof), 1, RUNS)
            .unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
        for mutant in mutants(&schedule, i as u64, MUTANTS) {
            if tally.judge(&mutant) {
                // What one fault leaves right, two may not.
                for again in mutants(&mutant.schedule, i as u64, 2) {
                    tally.judge(&again);
                }
            }
        }
    }
    let Tally { made, equivalent, rejected } = tally;
    println!("{made} mutants, {equivalent} equivalent, the others rejected for {rejected:?}");
    assert!(made >= 1000, "{made} mutants are too few");
}

#[derive(Default)]
struct Tally {
    made: usize,
    equivalent: usize,
    rejected: BTreeMap<&'static str, usize>,
}

impl Tally {
    /// Whether the mutant is proved; that must be no mistake, nor, where it is plain to see, the contrary.
    fn judge(&mut self, mutant: &Mutant) -> bool {
        self.made += 1;
        match prove(mutant.schedule.clone()) {
            Err(counterexample) => {
                *self.rejected.entry(kind(&counterexample.violation)).or_default() += 1;
                if is_visible(&counterexample.violation) {
                    let ran = concrete::check(&mutant.schedule, None, 7, RUNS);
                    assert!(ran.is_err(), "{mutant:?} runs well, but: {counterexample}");
                }
                false
            }
            Ok(proof) => {
                self.equivalent += 1;
                concrete::check(&mutant.schedule, Some(&proof), 7, RUNS)
                    .unwrap_or_else(|what| panic!("accepted, but wrong: {mutant:?}: {what}"));
                true
            }
        }
    }
}

/// A broadcast down a chain in three lanes a rank: one takes, one passes on, one copies out. The taking lane
/// closes each tile when the others are done with its scratch.
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
    let table = Table((0..nranks).map(rank).collect());
    let collective = Collective::Broadcast { root: 0 };
    Schedule::new("chain", collective, nranks, 1, table).with_scratch(3)
}

fn schedules() -> Vec<Schedule> {
    let mut schedules: Vec<_> = (2..=9).map(chain).collect();
    for generator in all() {
        for nranks in 2..=9 {
            schedules.push(generator.schedule(generator.of(nranks / 2), nranks));
        }
    }
    schedules
}

/// Whether any execution with numbers must show it.
fn is_visible(violation: &Violation) -> bool {
    matches!(
        violation,
        Violation::Unbalanced { .. }
            | Violation::Deadlock { semantics: Semantics::Buffered, .. }
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
