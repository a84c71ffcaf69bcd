//! Every generator is proved at every rank count of the list; rooted ones also from a middle rank.

mod on_all_cores;

use maypole_algorithms::collective::all;
use maypole_algorithms::verify::prove;
use maypole_algorithms::{Schedule, proof_suite};
use on_all_cores::on_all_cores;

#[test]
fn every_generator_is_proved() {
    let roots = |n: u32| [0, n / 2, n - 1];
    let schedules =
        |generator| (1..=64).flat_map(move |n| proof_suite::schedules_of(generator, n, &roots(n)));
    prove_each(all().flat_map(schedules).collect());
}

#[test]
fn every_generator_is_proved_at_some_larger_rank_counts() {
    prove_each(proof_suite::large().collect());
}

/// Proves the schedules on all cores, the last first, since those tend to be the largest.
fn prove_each(mut schedules: Vec<Schedule>) {
    schedules.reverse();
    let results = on_all_cores(&schedules, |_, schedule| {
        let proved =
            prove(schedule.clone()).map_err(|counterexample| counterexample.to_string())?;
        assert!(proved.facts().class <= schedule.class, "{proved:?}");
        Ok(proved.facts().steps)
    });
    let steps: u64 = results.iter().flatten().sum();
    let failures: Vec<&String> =
        results.iter().filter_map(|result| result.as_ref().err()).collect();
    println!("{} schedules, {steps} steps executed", schedules.len());
    assert!(failures.is_empty(), "{} are wrong, first: {}", failures.len(), failures[0]);
}
