//! Tests four schedules of different shapes, which are proved, encoded and run by the interpreter
//! kernel: every bit of every rank must be that of the scalar evaluation.

use super::support::device;
use super::support::operation::{Operation, SUM_F32};
use super::support::random::mix;
use super::support::ranks::{Ranks, Shape};
use super::support::scalar::evaluate;
use maypole_algorithms::collective::all_gather::pat;
use maypole_algorithms::collective::all_reduce::{double_tree, one_shot};
use maypole_algorithms::proof_suite::uneven_example;
use maypole_algorithms::verify::prove;
use maypole_algorithms::{DType, RedOp, Schedule};
use maypole_cuda::launch::{KernelError, LL, SLOTS};
use std::slice::from_ref;
use std::thread::sleep;
use std::time::Duration;

const SHAPE: Shape = Shape {
    count: 331,
    tile: 48,
    depth: 1,
    blocks: None,
    threads: 32,
    protocol: SLOTS,
    askew: 0,
    together: false,
    carried: 0,
};

/// Trees with lanes up and down; one fold of eight; groups of 3, 2 and 2 with `after`; lanes that
/// depend on other lanes, with fan-out.
fn schedules() -> [Schedule; 5] {
    [
        double_tree::schedule(8),
        one_shot::schedule(8),
        uneven_example(),
        pat::schedule(8),
        pat::schedule(7),
    ]
    .map(|schedule| match prove(schedule) {
        Ok(proved) => proved.schedule().clone(),
        Err(counterexample) => panic!("{counterexample}"),
    })
}

/// Runs `calls` one after the other, all queued at once over the same links, and compares each with
/// the scalar evaluation.
fn check(device: &device::TestDevice, calls: &[(&Schedule, Operation)], shape: Shape) {
    let calls: Vec<_> =
        calls.iter().map(|(schedule, operation)| (*schedule, *operation, shape)).collect();
    check_each(device, &calls, 1);
}

/// The same with one shape per call (that of the first call for the links), and `batch` calls per
/// launch.
fn check_each(device: &device::TestDevice, calls: &[(&Schedule, Operation, Shape)], batch: usize) {
    let schedules: Vec<Schedule> = calls.iter().map(|call| call.0.clone()).collect();
    let mut ranks = Ranks::new(device, &schedules, calls[0].2);
    let mut queued = Vec::new();
    for (i, &(schedule, operation, shape)) in calls.iter().enumerate() {
        let inputs = inputs(schedule, operation, shape.count, i as u64 + 1);
        ranks.call(schedule, operation, shape, &inputs);
        if (i + 1) % batch == 0 || i + 1 == calls.len() {
            ranks.launch(shape).expect("to launch");
        }
        queued.push(evaluate(schedule, operation, shape.count, &inputs));
    }
    for (i, (expected, (schedule, operation, shape))) in queued.iter().zip(calls).enumerate() {
        let found = ranks.finish(i, expected[0].len());
        for (rank, (found, expected)) in found.iter().zip(expected).enumerate() {
            let wrong = found.iter().zip(expected).position(|(f, e)| !operation.same(*f, *e));
            assert_eq!(
                wrong, None,
                "{schedule:?}, {operation:?}, call {i}, rank {rank}, {shape:?}: first wrong element"
            );
        }
    }
    let messages = ranks.carried();
    assert!(messages.iter().all(|n| *n > 0), "links of the ranks' own schedules are all used");
}

fn inputs(schedule: &Schedule, operation: Operation, count: u64, seed: u64) -> Vec<Vec<u64>> {
    let elements = u64::from(schedule.input_chunks() / schedule.parts) * count;
    let element = |rank: u32, i: u64| operation.sample(mix(seed << 40 | u64::from(rank) << 32 | i));
    (0..schedule.nranks).map(|rank| (0..elements).map(|i| element(rank, i)).collect()).collect()
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
        let operations = [
            (DType::Float32, RedOp::PreMulSum),
            (DType::Bfloat16, RedOp::Sum),
            (DType::Int32, RedOp::Avg),
            (DType::Float8E4M3, RedOp::Avg),
            (DType::Float64, RedOp::Min),
        ];
        for (dtype, op) in operations {
            let operation = Operation { dtype, op };
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
        ranks.call(schedule, SUM_F32, empty, &nothing);
        ranks.launch(empty).expect("to launch");
        ranks.finish(0, 0);
        assert!(ranks.carried().iter().all(|n| *n == 0));
    }
}

/// Sums of the samples depend on their order; otherwise the tests above would show little.
#[test]
fn another_order_of_the_fold_has_other_bits() {
    let [tree, one_shot, ..] = &schedules();
    let inputs = inputs(tree, SUM_F32, SHAPE.count, 1);
    let bits = |schedule: &Schedule| evaluate(schedule, SUM_F32, SHAPE.count, &inputs);
    let (tree, one_shot) = (bits(tree), bits(one_shot));
    let differ = tree[0].iter().zip(&one_shot[0]).filter(|(a, b)| a != b).count();
    assert!(differ as u64 > SHAPE.count / 4, "{differ} of {} differ", SHAPE.count);
}

/// A program with more lanes than blocks are resident runs with as many blocks as are. The driver
/// does not refuse a plain launch of more blocks, so the library never asks for more.
#[test]
fn as_many_blocks_as_are_resident_run_a_schedule_of_more_lanes() {
    let device = device::open();
    if !device.is_simulated() {
        return;
    }
    let schedule = &schedules()[0];
    device.configure(schedule.nranks * (schedule.lanes(0) - 1), 0);
    let shape = Shape { blocks: Some(schedule.lanes(0) - 1), ..SHAPE };
    check(&device, &[(schedule, SUM_F32)], shape);
}

/// A rank that would never end ends when it is aborted.
#[test]
fn waiting_ranks_can_be_aborted() {
    let device = device::open();
    let schedule = &schedules()[1];
    // Every rank folds twice, but the messages of the second fold are never sent.
    let mut table = schedule.to_table();
    for rank in &mut table.0 {
        let fold = *rank[0].last().expect("the fold");
        rank[0].push(fold);
    }
    let stuck = schedule.with_program(table);
    assert!(prove(stuck.clone()).is_err());
    let mut ranks = Ranks::new(&device, from_ref(&stuck), SHAPE);
    let inputs = inputs(schedule, SUM_F32, SHAPE.count, 1);
    for _ in 0..2 {
        ranks.call(&stuck, SUM_F32, SHAPE, &inputs);
    }
    ranks.launch(SHAPE).expect("to launch");
    sleep(Duration::from_millis(50));
    assert!(!ranks.is_idle());
    ranks.abort();
    assert!(ranks.is_idle());
    // The next launch sees the abort too, and counts as finished.
    ranks.call(&stuck, SUM_F32, SHAPE, &inputs);
    ranks.launch(SHAPE).expect("to launch");
    ranks.wait();
}

/// LL messages and slots follow each other on the same links; a block runs one lane or all of them.
#[test]
fn lines_and_slots_share_links() {
    let device = device::open();
    for schedule in &schedules() {
        for blocks in [None, Some(1)] {
            let depth = schedule.credit;
            let lines = Shape { depth, blocks, protocol: LL, threads: 64, ..SHAPE };
            let slots = Shape { protocol: SLOTS, ..lines };
            let calls = [lines, lines, slots, lines, slots].map(|shape| (schedule, SUM_F32, shape));
            check_each(&device, &calls, 1);
        }
    }
}

/// LL messages of every length modulo 16 bytes, from misaligned memory, with elements of every
/// size.
#[test]
fn lines_of_any_length_and_alignment() {
    let device = device::open();
    device.configure(128, 0);
    let schedule = &schedules()[0];
    let dtypes = [DType::Uint8, DType::Float16, DType::Float32, DType::Int64];
    for (dtype, askew) in dtypes.into_iter().zip([1, 3, 1, 1]) {
        let operation = Operation { dtype, op: RedOp::Max };
        let shape = |count| Shape { count, askew, tile: 96, protocol: LL, ..SHAPE };
        let calls: Vec<_> = (90..108).map(|count| (schedule, operation, shape(count))).collect();
        check_each(&device, &calls, 6);
    }
}

/// Several calls in a launch, with a barrier of the rank's blocks between them.
#[test]
fn works_of_a_launch_follow_each_other() {
    let device = device::open();
    let [tree, one_shot, _, pat, _] = &schedules();
    for blocks in [None, Some(2)] {
        // All works of a rank have the same blocks.
        let blocks = blocks.or(Some(4));
        let [slots, lines] = [SLOTS, LL].map(|protocol| Shape { blocks, protocol, ..SHAPE });
        let calls = [(tree, slots), (one_shot, lines), (pat, slots), (tree, lines), (tree, slots)];
        let calls = calls.map(|(schedule, shape)| (schedule, SUM_F32, shape));
        check_each(&device, &calls, 5);
    }
}

/// All ranks in one launch, with different operations one after the other.
#[test]
fn one_launch_for_all_ranks() {
    let device = device::open();
    let [tree, one_shot, ..] = &schedules();
    let shape = Shape { together: true, blocks: Some(3), ..SHAPE };
    let operation = Operation { dtype: DType::Int8, op: RedOp::Avg };
    let calls = [
        (tree, SUM_F32, shape),
        (one_shot, operation, Shape { protocol: LL, ..shape }),
        (tree, operation, shape),
    ];
    check_each(&device, &calls, 3);
}

/// Past 2^31 and 2^32 messages, LL rings contain words that already have the flags of later
/// messages. They are overwritten in time, also by messages that are short or travel in slots.
#[test]
fn counters_go_on_past_32_bits() {
    let device = device::open();
    for schedule in &schedules()[..2] {
        for carried in [(1 << 31) - 2, (1 << 32) - 2, (3 << 31) - 2] {
            let lines = Shape { depth: 2, carried, protocol: LL, ..SHAPE };
            let short = Shape { count: 9, ..lines };
            let slots = Shape { protocol: SLOTS, ..short };
            let mut ranks = Ranks::new(&device, from_ref(schedule), lines);
            assert!(ranks.stale() > 0);
            let mut expected = Vec::new();
            for (i, shape) in [short, slots, slots, short, lines].into_iter().enumerate() {
                let inputs = inputs(schedule, SUM_F32, shape.count, i as u64);
                ranks.call(schedule, SUM_F32, shape, &inputs);
                ranks.launch(shape).expect("to launch");
                ranks.wait();
                // The first two calls are before the window.
                assert_eq!(ranks.stale() > 0, i < 3, "call {i}");
                expected.push(evaluate(schedule, SUM_F32, shape.count, &inputs));
            }
            for (i, expected) in expected.iter().enumerate() {
                assert_eq!(&ranks.finish(i, expected[0].len()), expected, "call {i}");
            }
        }
    }
}

/// One rank makes another call: a rank that receives its message reports that, and all ranks end.
#[test]
fn a_wrong_tag_is_trouble_for_all() {
    let device = device::open();
    let schedule = &schedules()[1];
    for protocol in [SLOTS, LL] {
        let shape = Shape { protocol, ..SHAPE };
        let mut ranks = Ranks::new(&device, from_ref(schedule), shape);
        let inputs = inputs(schedule, SUM_F32, shape.count, 1);
        for _ in 0..2 {
            ranks.call(schedule, SUM_F32, shape, &inputs);
        }
        ranks.works(3)[1].tag ^= 0xabc;
        ranks.launch(shape).expect("to launch");
        ranks.wait();
        let found: Vec<_> = (0..8).filter_map(|rank| ranks.trouble(rank)).collect();
        assert!(!found.is_empty());
        for trouble in found {
            let KernelError::Tag { link, found } = trouble else { panic!("{trouble:?}") };
            // Only messages that rank 3 sends or receives differ.
            assert!([0xabc ^ 1, 1].contains(&(found ^ 0x5eed)), "{found:#x}");
            assert!(link < 7);
        }
    }
}

/// A message with the right tag whose length is no whole number of elements.
#[test]
fn a_wrong_length_is_trouble() {
    let device = device::open();
    let schedule = &schedules()[1];
    for protocol in [SLOTS, LL] {
        // Rank 3 sends bytes: too many for a tile, or no whole number of the others' elements.
        let shape = Shape { count: 45, protocol, ..SHAPE };
        let mut ranks = Ranks::new(&device, from_ref(schedule), shape);
        let inputs = inputs(schedule, SUM_F32, shape.count, 1);
        ranks.call(schedule, SUM_F32, shape, &inputs);
        ranks.works(3)[0].element = 1;
        ranks.works(3)[0].operation = 0;
        ranks.launch(shape).expect("to launch");
        ranks.wait();
        let found: Vec<_> = (0..8).filter_map(|rank| ranks.trouble(rank)).collect();
        assert!(found.iter().any(|t| matches!(t, KernelError::Length { .. })), "{found:?}");
    }
}

/// Words that are no program are reported, and the kernel writes nothing.
#[test]
fn words_that_are_no_program_are_trouble() {
    let device = device::open();
    let schedule = &schedules()[1];
    // The send buffer is as long as a program, so the kernel may read it as one.
    let shape = Shape { count: 600, ..SHAPE };
    let mut ranks = Ranks::new(&device, from_ref(schedule), shape);
    let inputs = inputs(schedule, SUM_F32, shape.count, 1);
    ranks.call(schedule, SUM_F32, shape, &inputs);
    let work = &mut ranks.works(2)[0];
    work.program = work.input;
    ranks.works(5)[0].operation = 6;
    ranks.launch(shape).expect("to launch");
    ranks.wait();
    assert!([2, 5].iter().any(|rank| ranks.trouble(*rank) == Some(KernelError::Program)));
}
