//! Every generator is proved at every rank count of the list; rooted ones also from a middle rank.

mod on_all_cores;

use maypole_algorithms::collective::{all, generators};
use maypole_algorithms::verify::prove;
use maypole_algorithms::{Collective, Schedule, proof_suite};
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

/// A proof of a broadcast holds for the other roots: what [`Proved::with_root`] says of a schedule
/// without executing it is what its own proof says.
#[test]
fn a_broadcast_with_another_root_has_the_proof_of_the_first() {
    for generator in generators(Collective::Broadcast { root: 0 }) {
        for nranks in [1, 2, 3, 5, 8] {
            let first = Collective::Broadcast { root: nranks / 2 };
            let first = prove(generator.schedule(first, nranks)).expect("a proof");
            for root in 0..nranks {
                let renamed = first.with_root(root).expect("a broadcast");
                let schedule = renamed.schedule();
                assert_eq!(schedule.collective, Collective::Broadcast { root });
                let own = prove(schedule.clone()).expect("a proof of its own");
                assert_eq!(renamed.facts(), own.facts());
                for rank in 0..nranks {
                    for output in 0..schedule.output_chunks() {
                        assert_eq!(renamed.tree(rank, output), own.tree(rank, output));
                    }
                    for lane in 0..schedule.lanes(rank) {
                        for index in 0..=schedule.steps(rank, lane) {
                            let origins =
                                (renamed.origin(rank, lane, index), own.origin(rank, lane, index));
                            assert_eq!(origins.0, origins.1, "{schedule:?}");
                        }
                    }
                }
                // A schedule that is renamed twice, back to the first root, is the first.
                let back = renamed.with_root(nranks / 2).expect("a broadcast");
                assert!(
                    back.is_same(&first)
                        && back.schedule().to_table() == first.schedule().to_table()
                );
            }
            assert!(first.with_root(nranks).is_none() && first.tree(nranks, 0).is_none());
        }
    }
    let reduce = generators(Collective::Reduce { root: 0 }).next().expect("a generator");
    let reduce = prove(reduce.schedule(Collective::Reduce { root: 0 }, 4)).expect("a proof");
    assert!(reduce.with_root(1).is_none(), "its reduction tree names the ranks in order");
}
