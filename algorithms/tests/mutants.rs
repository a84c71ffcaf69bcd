//! Schedules with one fault: the verifier rejects each, or it is harmless when run on numbers.

mod concrete;

use std::collections::BTreeMap;

use maypole_algorithms::collective::GENERATORS;
use maypole_algorithms::mutate::mutants;
use maypole_algorithms::verify::{Semantics, Violation, prove};
use maypole_algorithms::{Collective, Schedule};

const MUTANTS: usize = 20;
const RUNS: usize = 12;

#[test]
fn a_mutant_is_rejected_or_harmless() {
    let (mut made, mut rejected) = (0, BTreeMap::<_, usize>::new());
    for (i, schedule) in schedules().into_iter().enumerate() {
        prove(schedule.clone()).unwrap_or_else(|counterexample| panic!("{counterexample}"));
        concrete::check(&schedule, 1, RUNS).unwrap_or_else(|what| panic!("{schedule:?}: {what}"));
        for mutant in mutants(&schedule, i as u64, MUTANTS) {
            made += 1;
            match prove(mutant.schedule.clone()) {
                Err(counterexample) => {
                    *rejected.entry(kind(&counterexample.violation)).or_default() += 1;
                    if is_visible(&counterexample.violation) {
                        let ran = concrete::check(&mutant.schedule, 7, RUNS);
                        assert!(ran.is_err(), "{mutant:?} runs well, but: {counterexample}");
                    }
                }
                Ok(_) => concrete::check(&mutant.schedule, 7, RUNS)
                    .unwrap_or_else(|what| panic!("accepted, but wrong: {mutant:?}: {what}")),
            }
        }
    }
    let wrong: usize = rejected.values().sum();
    println!("{made} mutants, {wrong} rejected, {} equivalent; by violation: {rejected:?}", made - wrong);
    assert!(made >= 1000, "{made} mutants are too few");
}

fn schedules() -> Vec<Schedule> {
    let mut schedules = Vec::new();
    for generator in GENERATORS {
        for nranks in 2..=9 {
            let root = nranks / 2;
            let collective = [
                Collective::AllReduce,
                Collective::ReduceScatter,
                Collective::AllGather,
                Collective::AllToAll,
                Collective::Broadcast { root },
                Collective::Reduce { root },
                Collective::Gather { root },
                Collective::Scatter { root },
            ]
            .into_iter()
            .find(|collective| collective.name() == generator.collective)
            .expect("a generator is of a collective");
            schedules.push(generator.schedule(collective, nranks));
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
        Violation::Stale(_) => "stale",
        Violation::Algebra(_) => "algebra",
        Violation::Race { .. } => "race",
        Violation::Postcondition { .. } => "postcondition",
        Violation::Disagreement { .. } => "disagreement",
        Violation::NotCanonical { .. } => "not canonical",
    }
}
