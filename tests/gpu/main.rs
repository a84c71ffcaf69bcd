//! Tests communicators of CUDA devices, on the simulated GPU (docs/simulated-gpu.md), against
//! communicators of host memory.
//!
//! Each scene runs in a process that finds the simulated driver and has its own settings of the
//! simulator. Calls are made twice, on device memory and on host memory, and all of this memory is
//! compared, including the bytes that must not be written.

mod driver;
mod ends;
mod every;
mod failures;
mod graphs;
mod piece;
mod proxy;
mod random;
mod round;
mod shapes;
mod simulator;
mod steady;
mod world;

#[path = "../support/mixed_memory.rs"]
mod mixed_memory;
#[path = "../support/ranks.rs"]
mod ranks;
#[path = "../support/splitmix.rs"]
mod splitmix;

/// Not a test: the code that the process of a scene runs.
#[test]
#[ignore = "run by the other tests, in a process that finds the simulated GPU"]
fn scene() {
    let Some(words) = simulator::scene() else { return };
    let numbers: Vec<u64> = words[1..].iter().map(|word| word.parse().expect("a number")).collect();
    match (&*words[0], &numbers[..]) {
        ("random", &[ranks, seed, calls]) => random::in_threads(ranks as usize, seed, calls),
        ("every", &[ranks, thoroughly]) => every::in_threads(ranks as usize, thoroughly != 0),
        ("graphs", &[ranks, replays]) => graphs::of_each_rank(ranks as usize, replays),
        ("graphs-together", &[ranks, replays]) => graphs::of_all_ranks(ranks as usize, replays),
        ("abort", &[ranks]) => ends::abort(ranks as usize),
        ("crowd", &[ranks]) => ends::crowd(ranks as usize),
        ("failing", &[]) => failures::scene(),
        ("steady", &[]) => steady::scene(),
        ("fused", &[]) => steady::fused(),
        ("contexts", &[]) => steady::contexts(),
        ("one-thread", &[]) => shapes::one_thread(),
        (name, numbers) => panic!("no scene {name} of {numbers:?}"),
    }
}

/// Not a test: the code that a rank in a process of its own runs.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some(invitation) = ranks::invitation() else { return };
    let scene = invitation.scene.clone();
    let mut world = world::World::of_process(invitation);
    match scene.as_str() {
        "every" => every::all(&mut world, false),
        "random" => random::calls(&mut world, 7, 300),
        "forever" => return ends::forever(&mut world),
        other => panic!("no scene {other}"),
    }
    println!("say:done");
}
