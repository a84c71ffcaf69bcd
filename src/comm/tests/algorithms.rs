//! Every algorithm over every kind of link gives the bits of its proved tree.

use maypole_algorithms::collective::all_reduce::one_shot;
use maypole_algorithms::collective::{Generator, all};
use maypole_algorithms::proof_suite::uneven_example;
use maypole_algorithms::{Collective, DType, RedOp};

use super::case::{Case, element, plan};
use super::{Random, as_ranks, lateness, over_rdma, over_tcp};
use crate::SlotTraffic;
use crate::config::{self, Config};
use crate::test_share::{some_cases, some_of};
use crate::tune::Protocol;

#[test]
fn a_schedule_written_by_hand_runs_like_any_other() {
    let config = Config { slot_bytes: Some(512), ..Config::default() };
    for protocol in [Protocol::Ll, Protocol::Slots] {
        let results = as_ranks(uneven_example().nranks, &config, move |comm| {
            let mut random = Random(5);
            (0..40).try_for_each(|i| {
                let case = Case {
                    // Calls of different kinds, so that each gets its own plan.
                    count: 1 + i * if protocol == Protocol::Ll { 5 } else { 131 },
                    ..Case::random(&mut random, Collective::AllReduce)
                };
                let schedule = uneven_example();
                plan(comm, schedule.clone(), &case, protocol, 512);
                case.run(comm, &schedule).map_err(|why| format!("{case:?}: {why}"))
            })
        });
        for result in results {
            result.unwrap_or_else(|why| panic!("{protocol}: {why}"));
        }
    }
}

fn run_cases(
    generator: &'static Generator,
    nranks: u32,
    config: &Config,
    cases: u64,
) -> Vec<SlotTraffic> {
    let only = format!("{}:{}", generator.collective, generator.name);
    let config = Config { algorithms: Some(only), ..config.clone() };
    let results = as_ranks(nranks, &config, move |comm| {
        // The same cases on all ranks.
        let seed = generator.name.bytes().fold(u64::from(nranks), |s, b| s * 31 + u64::from(b));
        let mut random = Random(seed);
        let outcome = (0..cases).try_for_each(|_| {
            let root = random.below(u64::from(nranks)) as u32;
            let case = Case::random(&mut random, generator.collective_with_root(root));
            let chosen = comm.explain(&case.call(comm.rank())).expect("a choice").algorithm;
            assert_eq!(chosen, generator.name);
            let schedule = generator.schedule(case.collective, nranks);
            case.run(comm, &schedule)
                .map_err(|why| format!("rank {}: {case:?}: {why}", comm.rank()))
        });
        outcome.map(|()| comm.slot_traffic())
    });
    let slot_traffic = results.into_iter().map(|result| {
        result.unwrap_or_else(|why| panic!("{}, {nranks} ranks: {why}", generator.name))
    });
    slot_traffic.collect()
}

#[test]
fn every_algorithm_gives_the_bits_of_its_proved_tree() {
    for (index, generator) in all().enumerate() {
        for nranks in some_of(&[2, 3, 4, 5, 8, 11, 1], index) {
            run_cases(generator, nranks, &Config::default(), some_cases(25));
        }
    }
}

#[test]
fn the_same_over_memory_shared_by_descriptors() {
    let config = Config { p2p_disable: true, ..Config::default() };
    for (index, generator) in all().enumerate() {
        for nranks in some_of(&[2, 3, 6], index) {
            run_cases(generator, nranks, &config, some_cases(15));
        }
    }
}

/// Parts of the buffers are sent at any offset and of any length, in place or not.
#[test]
fn the_same_with_memory_that_is_read_in_place() {
    let mut copying = Vec::new();
    for (index, generator) in all().enumerate() {
        for (nranks, slot_bytes) in some_of(&[(2, None), (3, Some(4096)), (5, Some(256))], index) {
            let credit = generator.schedule(generator.collective_with_root(0), nranks).credit;
            let config = Config {
                p2p_disable: true,
                lend_from: Some(0),
                protocol: config::ProtocolSetting::Slots,
                slot_bytes,
                slot_depth: slot_bytes.map(|_| credit),
                ..Config::default()
            };
            let slot_traffic = run_cases(generator, nranks, &config, 12);
            assert!(
                slot_traffic.iter().any(|m| m.copied > 0),
                "what is of the allocator is copied"
            );
            if slot_traffic.iter().all(|m| m.lent == 0) {
                copying.push(generator.name);
            }
        }
    }
    copying.dedup();
    // These send only scratch, which no peer can map.
    assert_eq!(copying, ["oneshot", "doubling"]);
}

#[test]
fn the_same_over_tcp() {
    for (index, generator) in all().enumerate() {
        for (nranks, sockets_per_thread) in some_of(&[(2, 1), (3, 4), (6, 1)], index) {
            run_cases(generator, nranks, &over_tcp(sockets_per_thread), some_cases(15));
        }
    }
}

#[test]
fn the_same_over_rdma() {
    let Some(config) = over_rdma() else { return };
    for (index, generator) in all().enumerate() {
        // The short set runs a part of the algorithms.
        let counts = [Some(2), None, None, Some(8), None, None, None, Some(3)];
        for nranks in some_of(&counts, index).into_iter().flatten() {
            run_cases(generator, nranks, &config, 5);
        }
    }
}

#[test]
fn many_small_tiles_and_the_fewest_slots() {
    for (index, generator) in all().enumerate() {
        for (nranks, apart) in some_of(&[(2, true), (3, false), (7, true), (7, false)], index) {
            let credit = generator.schedule(generator.collective_with_root(0), nranks).credit;
            let config = Config {
                slot_bytes: Some(256),
                slot_depth: Some(credit),
                protocol: config::ProtocolSetting::Slots,
                p2p_disable: apart,
                lend_from: Some(0),
                ..Config::default()
            };
            run_cases(generator, nranks, &config, some_cases(10));
        }
    }
}

#[test]
fn late_messages_and_spurious_back_pressure_change_no_bit() {
    for (index, generator) in all().enumerate() {
        let networks = [(1, 2, false), (2, 4, true), (3, 5, false), (4, 7, true)];
        for (seed, nranks, apart) in some_of(&networks, index) {
            let config = Config {
                slot_bytes: Some(4096),
                fault: lateness(seed),
                p2p_disable: apart,
                lend_from: Some(0),
                ..Config::default()
            };
            run_cases(generator, nranks, &config, some_cases(8));
            run_cases(generator, nranks, &Config { fault: lateness(seed), ..over_tcp(1) }, 4);
        }
    }
}

#[test]
fn every_type_and_operation() {
    let config = Config { algorithms: Some("oneshot".to_owned()), ..Config::default() };
    let results = as_ranks(3, &config, |comm| {
        let mut failures = Vec::new();
        for dtype in DType::ALL {
            for op in RedOp::ALL {
                for count in [1, 9, 900] {
                    for in_place in [false, true] {
                        let case = Case {
                            collective: Collective::AllReduce,
                            dtype,
                            op,
                            count,
                            in_place,
                            skew: 0,
                            shared: false,
                            seed: count as u64,
                        };
                        let schedule = one_shot::schedule(3);
                        failures.extend(
                            case.run(comm, &schedule).err().map(|why| format!("{case:?}: {why}")),
                        );
                    }
                }
            }
        }
        failures
    });
    let failures = results.concat();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn canonical_algorithms_give_the_same_bits_whatever_is_chosen() {
    let sum = |algorithm: &str, protocol| {
        let config =
            Config { algorithms: Some(algorithm.to_owned()), protocol, ..Config::default() };
        as_ranks(6, &config, |comm| {
            let value = |i| f32::from_bits(element(DType::Float32, 7, comm.rank(), i) as u32);
            let send: Vec<f32> = (0..300).map(value).collect();
            let mut recv = vec![0.0f32; 300];
            comm.all_reduce(&send, &mut recv, RedOp::Sum).expect("an all-reduce");
            recv.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let reference = sum("oneshot", config::ProtocolSetting::Auto);
    for algorithm in ["oneshot", "twoshot", "doubling"] {
        for protocol in [config::ProtocolSetting::Line, config::ProtocolSetting::Slots] {
            assert_eq!(sum(algorithm, protocol), reference, "{algorithm}");
        }
    }
    assert!(reference.iter().all(|r| *r == reference[0]), "ranks differ");
}
