//! Every generator is proved at every rank count of the list; rooted ones also from a middle rank.

use std::sync::atomic::{AtomicUsize, Ordering};

use maypole_algorithms::collective::all;
use maypole_algorithms::verify::prove;
use maypole_algorithms::{Schedule, proof_suite};

#[test]
fn every_generator_is_proved() {
    let roots = |n: u32| [0, n / 2, n - 1];
    let of =
        |generator| (1..=64).flat_map(move |n| proof_suite::schedules_of(generator, n, &roots(n)));
    prove_each(all().flat_map(of).collect());
}

#[test]
fn every_generator_is_proved_at_some_larger_rank_counts() {
    prove_each(proof_suite::large().collect());
}

/// Proves the schedules on all cores, the last first, since those tend to be the largest.
fn prove_each(schedules: Vec<Schedule>) {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut steps, mut failures) = (0, Vec::new());
        // Relaxed: each thread only needs a different number.
        while let Some(schedule) = schedules.iter().rev().nth(next.fetch_add(1, Ordering::Relaxed))
        {
            match prove(schedule.clone()) {
                Ok(proved) => {
                    steps += proved.facts().steps;
                    assert!(proved.facts().class <= schedule.class, "{proved:?}");
                }
                Err(counterexample) => failures.push(counterexample.to_string()),
            }
        }
        (steps, failures)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no assertion failed")).collect()
    });
    let steps: u64 = done.iter().map(|(steps, _)| steps).sum();
    let failures: Vec<_> = done.iter().flat_map(|(_, failures)| failures).collect();
    println!("{} schedules, {steps} steps executed", schedules.len());
    assert!(failures.is_empty(), "{} are wrong, first: {}", failures.len(), failures[0]);
}
