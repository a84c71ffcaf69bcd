//! Ranks that are stopped and continued at random moments: in calls, while they connect, split or
//! wait. All results are right, and no call fails.

use std::sync::mpsc;
use std::time::Duration;

use crate::ranks::{Invitation, Job, OVER_TCP, invitation, share_of, signal};
use crate::splitmix::Random;
use maypole::{Communicator, RedOp};

/// The test that a rank process runs.
const ENTRY: &str = "freeze::rank";
/// Sets the seed of the calls, and their number.
const SEED: &str = "MAYPOLE_TEST_SEED";
const CALLS: &str = "MAYPOLE_TEST_CALLS";

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some(Invitation { id, rank, nranks, .. }) = invitation() else { return };
    let number = |name| std::env::var(name).expect("a number").parse::<u64>().expect("a number");
    let mut comm = Communicator::new(&id, rank, nranks).unwrap_or_else(|e| panic!("init: {e}"));
    // All ranks draw the same numbers.
    let mut random = Random(number(SEED));
    for call in 0..number(CALLS) {
        let count = [1, 7, 1000, 20_000, 200_001][random.below(5) as usize];
        match random.below(6) {
            0 => {
                let color = Some(rank % 2);
                let mut child = comm.split(color, 0).unwrap_or_else(|e| panic!("{call}: {e}"));
                check_sum(child.as_mut().expect("a child"), count, call);
            }
            1 => {
                let root = random.below(nranks.into()) as u32;
                let mut data: Vec<i32> = (0..count).map(|i| i + (rank == root) as i32).collect();
                let sent = comm.broadcast_in_place(&mut data, root);
                sent.unwrap_or_else(|e| panic!("{call}: {e}"));
                assert!(data.iter().zip(0..).all(|(got, i)| *got == i + 1), "{call}");
            }
            _ => check_sum(&mut comm, count, call),
        }
    }
    println!("say:done");
}

fn check_sum(comm: &mut Communicator, count: i32, call: u64) {
    let (rank, nranks) = (comm.rank() as i32, comm.nranks() as i32);
    let send: Vec<i32> = (0..count).map(|i| 3 * i + rank + call as i32).collect();
    let mut recv = vec![0; send.len()];
    comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{call}: {e}"));
    let rest = nranks * (nranks - 1) / 2 + nranks * call as i32;
    assert!(recv.iter().zip(0..).all(|(sum, i)| *sum == nranks * 3 * i + rest), "{call}");
}

/// Runs a job of `nranks` ranks, of which one or all are stopped for up to `longest` again and
/// again, from the first moment on.
fn freeze(seed: u64, nranks: u32, calls: u32, longest: Duration, environment: &[(&str, &str)]) {
    println!("seed {seed}, {nranks} ranks, {environment:?}");
    let (seed_text, calls) = (seed.to_string(), calls.to_string());
    let own = [(SEED, seed_text.as_str()), (CALLS, calls.as_str())];
    let environment = [&own[..], environment].concat();
    let patience = Duration::from_secs(600);
    let mut job = Job::start_patient(ENTRY, nranks, "freeze", &environment, patience);
    let pids = job.pids();
    let (stop, stopped) = mpsc::channel::<()>();
    let freezer = std::thread::spawn(move || {
        let mut random = Random(seed ^ 0xf1);
        let mut pause = |longest: Duration| {
            let micros = random.below(longest.as_micros() as u64);
            let ended = stopped.recv_timeout(Duration::from_micros(micros));
            (ended == Err(mpsc::RecvTimeoutError::Timeout), random.below(1 << 32) as usize)
        };
        // Processes that have ended are not waited for yet, so their numbers are not reused.
        loop {
            let (goes_on, draw) = pause(Duration::from_millis(4));
            let first = draw % pids.len();
            let chosen = if draw % 7 == 0 { &pids[..] } else { &pids[first..=first] };
            if !goes_on {
                return;
            }
            chosen.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
            let (goes_on, _) = pause(longest);
            chosen.iter().for_each(|pid| signal(*pid, libc::SIGCONT));
            if !goes_on {
                return;
            }
        }
    });
    let said: Vec<String> = (0..nranks as usize).map(|rank| job.hear(rank)).collect();
    drop(stop);
    freezer.join().expect("the thread that stops the ranks");
    for (rank, said) in said.iter().enumerate() {
        if said != "done" {
            let errors = job.errors_until(rank, "\u{0}");
            panic!("seed {seed}, rank {rank}: {said:?}\n{errors}");
        }
        job.ends_well(rank);
    }
}

#[test]
fn ranks_that_are_stopped_at_any_moment_go_on() {
    for seed in 0..share_of(4, 1).into() {
        freeze(seed, 4, 20, Duration::from_millis(10), &[]);
        freeze(seed, 3, 20, Duration::from_millis(10), &OVER_TCP);
    }
}

/// Some are stopped for longer than a handshake may take.
#[test]
#[ignore = "takes minutes"]
fn ranks_that_are_stopped_at_very_many_moments_go_on() {
    for seed in 100..160 {
        let longest = if seed % 10 == 0 { 12_000 } else { 40 };
        let (nranks, calls) = (2 + seed as u32 % 7, if seed % 10 == 0 { 5 } else { 60 });
        freeze(seed, nranks, calls, Duration::from_millis(longest), &[]);
        freeze(seed, nranks, calls, Duration::from_millis(longest), &OVER_TCP);
    }
}
