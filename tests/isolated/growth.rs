//! Tests that a process does not grow with the number of different calls, windows and
//! communicators that it makes.

use std::io::Read;
use std::time::Duration;

use crate::ranks::Job;
use maypole::memory::SharedBuffer;
use maypole::{Communicator, RedOp, UniqueId};

/// The test that a rank process runs.
const ENTRY: &str = "growth::rank";

/// How many bytes a process may grow after a tenth of the rounds, by pages of the allocator. A plan
/// takes about 2 KB, so 2900 plans more than the communicator may keep are beyond it.
const MOST_GROWTH: usize = 4 << 20;

/// Different counts after which a communicator has as many plans for them as it keeps (1024).
const FULL_TABLE: u32 = 1100;

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Ok(scene) = std::env::var("MAYPOLE_TEST_SCENE") else { return };
    let words: Vec<&str> = scene.split(' ').collect();
    let number = |word: &str| word.parse::<u32>().expect("a number");
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("128 bytes");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    let (kind, rounds) = words[0].split_once('=').expect("a kind and a number");
    let rounds = number(rounds);
    let mut comm = Communicator::new(&id, number(words[1]), number(words[2])).expect("a rank");
    let mut round: Box<dyn FnMut(u32)> = match kind {
        "counts" => {
            let mut data = vec![0u8; rounds as usize];
            Box::new(move |round| {
                // Each length once, short and long ones mixed: 7919 is prime.
                let last = u64::from(round) * 7919 % u64::from(rounds);
                let data = &mut data[..=last as usize];
                data.fill(1);
                comm.all_reduce_in_place(data, RedOp::Sum).expect("a sum");
                assert!(data.iter().all(|sum| *sum == 2), "{} elements", data.len());
            })
        }
        "windows" => Box::new(move |_| {
            let mut memory = SharedBuffer::new(4096).expect("memory");
            // SAFETY: the memory is dropped after all ranks have deregistered the window.
            let window = unsafe { comm.register_window(memory.as_mut_ptr(), 4096) };
            let window = window.expect("a window");
            let peer = 1 - comm.rank();
            comm.put_slice(&[7u8; 64], peer, window, 0).expect("a put");
            comm.wait_signals(&[(peer, 1)]).expect("a signal");
            comm.deregister_window(window).expect("the window");
            comm.barrier().expect("a barrier");
        }),
        _ => Box::new(move |_| {
            let child = comm.split(Some(0), 0).expect("a child").expect("this rank is in it");
            let (mut child, mut sum) = (child, [0]);
            child.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a sum");
            assert_eq!(sum, [2]);
        }),
    };
    let least = if kind == "counts" { FULL_TABLE } else { 0 };
    let first = (rounds / 10).max(least);
    (0..first).for_each(&mut round);
    let before = resident_bytes();
    (first..rounds).for_each(&mut round);
    let grown = resident_bytes().saturating_sub(before);
    let bounded = grown <= MOST_GROWTH;
    println!("say:{}", if bounded { "bounded".into() } else { format!("grew by {grown}") });
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("a file of /proc");
    let pages = text.split(' ').nth(1).expect("the second number");
    pages.parse::<usize>().expect("a number") * 4096
}

/// Two rank processes that do `rounds` different things, or the share of them that
/// `MAYPOLE_TEST_SHARE` asks for in percent, but not fewer than `least`.
fn does_not_grow(kind: &str, rounds: u32, least: u32) {
    let _alone = crate::alone();
    let rounds = crate::ranks::share_of(rounds, least);
    let patience = Duration::from_secs(1200);
    let mut job = Job::start_patient(ENTRY, 2, &format!("{kind}={rounds}"), &[], patience);
    job.all_say("bounded");
    (0..2).for_each(|rank| job.ends_well(rank));
}

#[test]
fn calls_of_a_hundred_thousand_lengths() {
    does_not_grow("counts", 100_000, 4000);
}

#[test]
fn windows_by_the_thousand() {
    does_not_grow("windows", 20_000, 2000);
}

#[test]
fn communicators_by_the_thousand() {
    does_not_grow("communicators", 3000, 150);
}
