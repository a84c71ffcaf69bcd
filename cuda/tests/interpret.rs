//! Four schedules of quite different shapes, proved, encoded, and run by the interpreter kernel: every bit of every rank is that of the
//! scalar evaluation.
//!
//! On the simulated device unless `MAYPOLE_TEST_CUDA_IMAGE` is set; see `docs/gpu.md`.

mod support;

use maypole_algorithms::Schedule;
use maypole_algorithms::collective::all_gather::pat;
use maypole_algorithms::collective::all_reduce::{double_tree, one_shot, uneven_example};
use maypole_algorithms::verify::prove;
use maypole_cuda::driver::DriverError;
use std::slice::from_ref;
use std::thread::sleep;
use std::time::Duration;
use support::device;
use support::operation::{AVG_I32, Operation, PREMULSUM_F32, SUM_BF16, SUM_F32};
use support::ranks::{Ranks, Shape};
use support::scalar::evaluate;

const SHAPE: Shape = Shape { count: 331, tile: 48, depth: 1, blocks: None, threads: 32 };

/// Trees with lanes up and down; one fold of eight; groups of 3, 2 and 2 with `after`; lanes that depend on lanes, fan-out.
fn schedules() -> [Schedule; 5] {
    [
        double_tree::schedule(8),
        one_shot::schedule(8),
        uneven_example::schedule(),
        pat::schedule(8),
        pat::schedule(7),
    ]
    .map(|schedule| match prove(schedule) {
        Ok(proved) => proved.schedule().clone(),
        Err(counterexample) => panic!("{counterexample}"),
    })
}

/// Runs `calls` one after the other, all queued at once over the same links, and compares each with the scalar evaluation.
fn check(device: &device::TestDevice, calls: &[(&Schedule, Operation)], shape: Shape) {
    let schedules: Vec<Schedule> = calls.iter().map(|(schedule, _)| (*schedule).clone()).collect();
    let mut ranks = Ranks::new(device, &schedules, shape);
    let mut queued = Vec::new();
    for (i, (schedule, operation)) in calls.iter().enumerate() {
        let inputs = inputs(schedule, *operation, shape.count, i as u64 + 1);
        ranks.call(schedule, *operation, shape, &inputs).expect("to launch");
        queued.push(evaluate(schedule, *operation, shape.count, &inputs));
    }
    for (i, (expected, (schedule, operation))) in queued.iter().zip(calls).enumerate() {
        let found = ranks.finish(i, *operation, expected[0].len());
        for (rank, (found, expected)) in found.iter().zip(expected).enumerate() {
            let wrong = found.iter().zip(expected).position(|(f, e)| f != e);
            assert_eq!(wrong, None, "{schedule:?}, rank {rank}, {shape:?}: first wrong element");
        }
    }
    let messages = ranks.carried();
    assert!(messages.iter().all(|n| *n > 0), "links of the ranks' own schedules are all used");
}

fn inputs(schedule: &Schedule, operation: Operation, count: u64, seed: u64) -> Vec<Vec<u32>> {
    let elements = u64::from(schedule.input_chunks() / schedule.parts) * count;
    let element =
        |rank: u32, i: u64| (operation.sample)(mix(seed << 40 | u64::from(rank) << 32 | i));
    (0..schedule.nranks).map(|rank| (0..elements).map(|i| element(rank, i)).collect()).collect()
}

/// The finaliser of SplitMix64.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[test]
fn bits_are_those_of_the_scalar_evaluation() {
    let device = device::open();
    for schedule in &schedules() {
        for depth in [schedule.credit, schedule.credit + 2] {
            check(&device, &[(schedule, SUM_F32); 3], Shape { depth, ..SHAPE });
        }
    }
}

#[test]
fn any_number_of_blocks_walks_all_lanes() {
    let device = device::open();
    for schedule in &schedules() {
        for blocks in [1, 3] {
            let shape = Shape { blocks: Some(blocks), threads: 64, ..SHAPE };
            check(&device, &[(schedule, SUM_F32); 2], shape);
        }
    }
}

#[test]
fn different_calls_follow_each_other_on_the_same_links() {
    let device = device::open();
    let [tree, one_shot, _, pat, _] = &schedules();
    let calls = [tree, one_shot, pat, pat, one_shot, tree].map(|schedule| (schedule, SUM_F32));
    check(&device, &calls, SHAPE);
}

#[test]
fn operations_contribute_round_and_finish() {
    let device = device::open();
    for schedule in &schedules()[..3] {
        for operation in [PREMULSUM_F32, SUM_BF16, AVG_I32] {
            check(&device, &[(schedule, operation)], SHAPE);
        }
    }
}

#[test]
fn short_chunks_and_no_elements_at_all() {
    let device = device::open();
    for schedule in &schedules() {
        for count in [1, 3, 49] {
            check(&device, &[(schedule, SUM_F32)], Shape { count, ..SHAPE });
        }
        let mut ranks = Ranks::new(&device, from_ref(schedule), SHAPE);
        let nothing = vec![Vec::new(); schedule.nranks as usize];
        let empty = Shape { count: 0, ..SHAPE };
        ranks.call(schedule, SUM_F32, empty, &nothing).expect("to launch");
        ranks.finish(0, SUM_F32, 0);
        assert!(ranks.carried().iter().all(|n| *n == 0));
    }
}

/// Were sums of the samples the same in every order, the tests above would say little.
#[test]
fn another_order_of_the_fold_has_other_bits() {
    let [tree, one_shot, ..] = &schedules();
    let inputs = inputs(tree, SUM_F32, SHAPE.count, 1);
    let bits = |schedule: &Schedule| evaluate(schedule, SUM_F32, SHAPE.count, &inputs);
    let (tree, one_shot) = (bits(tree), bits(one_shot));
    let differ = tree[0].iter().zip(&one_shot[0]).filter(|(a, b)| a != b).count();
    assert!(differ as u64 > SHAPE.count / 4, "{differ} of {} differ", SHAPE.count);
}

/// One multiprocessor too few is refused before anything runs; one block less per launch, and the same program fits.
#[test]
fn a_launch_that_cannot_be_resident_is_refused() {
    let device = device::open();
    if !device.is_simulated() {
        return;
    }
    let schedule = &schedules()[0];
    device.configure(schedule.lanes(0) - 1, 0);
    let mut ranks = Ranks::new(&device, from_ref(schedule), SHAPE);
    let inputs = inputs(schedule, SUM_F32, SHAPE.count, 1);
    let refused = ranks.call(schedule, SUM_F32, SHAPE, &inputs).err();
    assert!(matches!(refused, Some(DriverError::Failed { code: 720, .. })), "{refused:?}");
    device.configure(schedule.nranks * (schedule.lanes(0) - 1), 0);
    let shape = Shape { blocks: Some(schedule.lanes(0) - 1), ..SHAPE };
    check(&device, &[(schedule, SUM_F32)], shape);
}

/// A rank that waits for ever does so until it is told.
#[test]
fn waiting_ranks_can_be_aborted() {
    let device = device::open();
    let schedule = &schedules()[1];
    // Every rank folds twice: the messages of the second time are never sent.
    let mut table = schedule.to_table();
    for rank in &mut table.0 {
        let fold = *rank[0].last().expect("the fold");
        rank[0].push(fold);
    }
    let stuck = schedule.with_program(table);
    assert!(prove(stuck.clone()).is_err());
    let mut ranks = Ranks::new(&device, from_ref(&stuck), SHAPE);
    let inputs = inputs(schedule, SUM_F32, SHAPE.count, 1);
    ranks.call(&stuck, SUM_F32, SHAPE, &inputs).expect("to launch");
    sleep(Duration::from_millis(50));
    assert!(!ranks.is_idle());
    ranks.abort();
    assert!(ranks.is_idle());
}
