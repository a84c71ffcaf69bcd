//! Tests random calls: random collective, type, operation, size, root, buffers, stream and group.
//! The expected result is that of the host.

use maypole::{Collective, DType, RedOp};

use crate::piece::{Even, Piece, What};
use crate::round::{Group, Round, Way};
use crate::simulator::play;
use crate::splitmix::Random;
use crate::world::{STREAMS, World};

/// Streams of several ranks that share a device need separate hardware queues, so that none waits
/// behind another.
const QUEUES: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "32");

fn piece(random: &mut Random, nranks: u32) -> Piece {
    let root = random.below(nranks.into()) as u32;
    let collective = random.pick(&Collective::all(root));
    let (dtype, op) = (random.pick(&DType::ALL), random.pick(&RedOp::ALL));
    let what = match random.below(20) {
        0 => What::Barrier,
        1..=3 => {
            let collective = match collective {
                Collective::AllReduce | Collective::Broadcast { .. } => Collective::AllGather,
                Collective::Reduce { .. } => Collective::ReduceScatter,
                other => other,
            };
            What::Uneven(collective, dtype, op)
        }
        4..=6 => {
            let rank = |random: &mut Random| random.below(nranks.into()) as u32;
            let many = random.below(3 * u64::from(nranks)) + 1;
            let one = |_| {
                let bytes = random.pick(&[0, 1, 7, 64, 100, 1000, 4096, 5001, 20_000]);
                (rank(random), rank(random), bytes)
            };
            What::Transfers((0..many).map(one).collect())
        }
        _ => What::Even(Even {
            collective,
            dtype,
            op,
            count: match random.below(8) {
                0 => random.below(3) as usize,
                1 => random.pick(&[5000, 20_011]) / nranks as usize,
                2 => random.below(3000) as usize,
                _ => random.pick(&[1, 3, 7, 13, 64, 100, 447, 449, 1000]),
            },
            in_place: random.below(2) == 0,
            skew: random.pick(&[0, 0, 0, 1, 3, 8, 33]),
            resident: random.below(2) == 0,
        }),
    };
    Piece { what, seed: random.next() }
}

fn round(random: &mut Random, nranks: u32) -> Round {
    let calls = 1 + random.below(10) as usize;
    let pieces = (0..calls).map(|_| piece(random, nranks)).collect();
    let (mut groups, mut left) = (Vec::new(), calls);
    while left > 0 {
        let calls = 1 + random.below(left as u64) as usize;
        groups.push(Group { calls, stream: random.below(STREAMS as u64) as usize });
        left -= calls;
    }
    let way = random.pick(&[Way::Direct, Way::Apart, Way::Apart, Way::Together, Way::Legacy]);
    Round { pieces, groups, way }
}

/// `calls` random calls, or some more.
pub(crate) fn calls(world: &mut World, seed: u64, calls: u64) {
    let mut random = Random(seed);
    let mut done = 0;
    while done < calls {
        let round = round(&mut random, world.nranks);
        round.play(world);
        done += round.pieces.len() as u64;
    }
}

pub(crate) fn in_threads(ranks: usize, seed: u64, count: u64) {
    calls(&mut World::of_threads(ranks), seed, count);
}

/// The number of ranks of each scene, with its part of 10 000 calls.
const WORLDS: [(u32, u32); 8] =
    [(1, 1000), (2, 2000), (3, 2000), (4, 1800), (5, 1200), (6, 800), (7, 600), (8, 600)];

/// Makes as many random calls as MAYPOLE_GPU_CALLS says, which is 10 000 in the suite `gpu` of
/// scripts/test.
#[test]
fn random_calls_of_every_number_of_ranks() {
    let calls =
        std::env::var("MAYPOLE_GPU_CALLS").map_or(1000, |text| text.parse().expect("a number"));
    for (ranks, share) in WORLDS {
        let calls: u32 = share * calls / 10_000;
        play(&format!("random {ranks} {} {calls}", 100 + ranks), &[QUEUES]).well();
    }
}

#[test]
fn random_calls_with_delays_and_the_smallest_slots() {
    let late = [QUEUES, ("SIMCUDA_JITTER_US", "300"), ("SIMCUDA_CALL_JITTER_US", "50")];
    play("random 3 11 150", &late).well();
    let narrow = [QUEUES, ("MAYPOLE_GPU_SLOT_BYTES", "64"), ("MAYPOLE_GPU_SLOT_DEPTH", "1")];
    play("random 4 12 80", &narrow).well();
    let slots = [QUEUES, ("MAYPOLE_GPU_SLOT_BYTES", "1024"), ("NCCL_PROTO", "Simple")];
    play("random 3 13 150", &slots).well();
}

#[test]
fn random_calls_on_devices_of_few_blocks_and_few_queues() {
    // Three ranks share a device of three blocks.
    let few = [QUEUES, ("SIMCUDA_BLOCKS", "3"), ("SIMCUDA_DEVICES", "1")];
    play("random 3 14 150", &few).well();
    // One rank per device, and one queue.
    let one = [("CUDA_DEVICE_MAX_CONNECTIONS", "1"), ("SIMCUDA_DEVICES", "1")];
    play("random 1 15 300", &one).well();
}

#[test]
fn random_calls_on_devices_that_do_not_reach_each_other() {
    play("random 4 16 150", &[QUEUES, ("SIMCUDA_PEERS", "0")]).well();
}

#[test]
fn random_calls_of_processes() {
    let settings = [QUEUES, ("LD_LIBRARY_PATH", crate::simulator::folder())];
    let mut job = crate::ranks::Job::start("rank", 3, "random", &settings);
    job.all_well().into_iter().for_each(|said| assert_eq!(said, "done"));
}
