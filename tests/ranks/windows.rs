//! Tests of windows between processes: what is put arrives, and when a target or a source is killed
//! the calls of the others end with an error that names it.

use crate::ranks::{Job, OVER_TCP};
use maypole::memory::SharedBuffer;
use maypole::{Communicator, Error, WindowId};

/// The test that a rank process runs.
const ENTRY: &str = "windows::rank";

const WORDS: usize = 100_000;

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((scene, mut comm)) = crate::ranks::enter() else { return };
    // Other ranks write to it until the process ends.
    let part = match scene.split_once('-') {
        Some((_, "library")) => {
            Box::leak(Box::new(SharedBuffer::new(WORDS * 8).expect("memory"))).as_mut_ptr().cast()
        }
        _ => vec![0; WORDS].leak().as_mut_ptr(),
    };
    // SAFETY: the memory is never freed, and from now on only read through the pointer.
    let window = unsafe { comm.register_window(part.cast(), WORDS * 8) };
    let window = window.unwrap_or_else(|e| panic!("{e}"));
    match scene.split('-').next().unwrap_or_default() {
        "ring" => ring(&mut comm, window, part),
        "puts" => puts(&mut comm, window),
        "waits" => waits(&mut comm),
        other => panic!("no scene {other}"),
    }
}

fn put(comm: &mut Communicator, data: &[u64], peer: u32, window: WindowId) -> Result<(), Error> {
    // SAFETY: the slice is borrowed for the call.
    unsafe { comm.put(data.as_ptr().cast(), data.len() * 8, peer, window, 0) }
}

/// Each rank puts what it has to the next rank, as often as there are ranks.
fn ring(comm: &mut Communicator, window: WindowId, part: *mut u64) {
    let (rank, n) = (comm.rank(), comm.nranks());
    let mut data: Vec<u64> = (0..WORDS as u64).map(|i| u64::from(rank) << 32 | i).collect();
    for _ in 0..n {
        put(comm, &data, (rank + 1) % n, window).unwrap_or_else(|e| panic!("{e}"));
        comm.wait_signals(&[((rank + n - 1) % n, 1)]).unwrap_or_else(|e| panic!("{e}"));
        // SAFETY: the previous rank has signalled, and puts again only after the barrier.
        unsafe { std::ptr::copy_nonoverlapping(part, data.as_mut_ptr(), WORDS) };
        comm.barrier().unwrap_or_else(|e| panic!("{e}"));
    }
    assert!(data.iter().zip(0..).all(|(word, i)| *word == u64::from(rank) << 32 | i));
    println!("say:done");
}

/// Rank 0 puts to rank 1 until a put fails; rank 1 waits for rank 2, and rank 2 for rank 0.
fn puts(comm: &mut Communicator, window: WindowId) {
    println!("say:started");
    let error = match comm.rank() {
        0 => {
            let data = vec![1; WORDS];
            loop {
                if let Err(error) = put(comm, &data, 1, window) {
                    break error;
                }
            }
        }
        rank => comm.wait_signals(&[(2 * (2 - rank), 1)]).expect_err("nobody signals it"),
    };
    println!("say:{error}");
}

/// All ranks wait for rank 1, which does nothing.
fn waits(comm: &mut Communicator) {
    println!("say:started");
    let whom = if comm.rank() == 1 { 0 } else { 1 };
    let error = comm.wait_signals(&[(whom, 1)]).expect_err("rank 1 sends no signal");
    println!("say:{error}");
}

#[test]
fn puts_travel_around_a_ring_of_processes() {
    for environment in [&[][..], &OVER_TCP] {
        Job::start(ENTRY, 3, "ring", environment).all_say("done");
        Job::start(ENTRY, 3, "ring-library", environment).all_say("done");
    }
}

#[test]
fn a_killed_process_ends_puts_and_waits_with_its_number() {
    for environment in [&[][..], &OVER_TCP] {
        for scene in ["puts", "waits", "puts-library", "waits-library"] {
            let mut job = Job::start(ENTRY, 3, scene, environment);
            job.all_say("started");
            job.signal(1, libc::SIGKILL);
            for survivor in [0, 2] {
                let said = job.hear(survivor);
                assert!(said.contains("rank 1 died"), "{scene}: rank {survivor} says {said}");
            }
        }
    }
}
