//! Tests of ranks as processes: all-reduces, and ranks that die, stop or come late.

use std::time::Duration;

use crate::ranks::Job;
use maypole::{Communicator, RedOp};

/// The test that a rank process runs.
const ENTRY: &str = "processes::rank";

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((scene, mut comm)) = crate::ranks::enter() else { return };
    match scene.as_str() {
        "sums" => sums(&mut comm),
        "forever" => forever(&mut comm),
        "late" => late(&mut comm),
        "alarms" => alarms(&mut comm),
        other => panic!("no scene {other}"),
    }
}

/// Makes many calls of many sizes, and checks each.
fn sums(comm: &mut Communicator) {
    for round in 0..60usize {
        let count = [1, 3, 100, 1000, 30_000, 300_001][round % 6];
        check_sum(comm, count, round as i32);
    }
    println!("say:done");
}

fn check_sum(comm: &mut Communicator, count: usize, salt: i32) {
    let send: Vec<i32> = (0..count as i32).map(|i| i * 7 + salt + comm.rank() as i32).collect();
    let mut recv = vec![0; count];
    comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
    let n = comm.nranks() as i32;
    for (i, r) in recv.iter().enumerate() {
        assert_eq!(*r, n * (i as i32 * 7 + salt) + n * (n - 1) / 2);
    }
}

/// Makes calls until one fails, and prints the error.
fn forever(comm: &mut Communicator) {
    let (send, mut recv) = (vec![1.0f32; 1 << 18], vec![0.0f32; 1 << 18]);
    check_sum(comm, 1, 0);
    println!("say:started");
    loop {
        for count in [1, 1 << 18] {
            if let Err(error) = comm.all_reduce(&send[..count], &mut recv[..count], RedOp::Sum) {
                println!("say:{error}");
                return;
            }
        }
    }
}

/// Rank 1 comes two seconds late; rank 0 prints how much processor time its wait took.
fn late(comm: &mut Communicator) {
    check_sum(comm, 1, 0);
    if comm.rank() == 1 {
        std::thread::sleep(Duration::from_secs(2));
    }
    let before = thread_cpu();
    check_sum(comm, 1, 1);
    println!("say:{}", (thread_cpu() - before).as_millis());
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Makes many calls while many signals arrive whose handler does not restart system calls.
fn alarms(comm: &mut Communicator) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing; the structures are valid and fully set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let every = libc::timeval { tv_sec: 0, tv_usec: 300 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    sums(comm);
}

#[test]
fn sums_are_right_between_processes_also_when_they_outnumber_the_cores() {
    for nranks in [1, 2, 3, 4, 16] {
        let said = Job::start(ENTRY, nranks, "sums", &[]).all_well();
        assert!(said.iter().all(|s| s == "done"), "{said:?}");
    }
}

/// Variables that make ranks of one host use TCP, over two streams per pair.
const OVER_TCP: [(&str, &str); 3] =
    [("NCCL_SHM_DISABLE", "1"), ("NCCL_P2P_DISABLE", "1"), ("NCCL_NSOCKS_PERTHREAD", "2")];

#[test]
fn sums_are_right_over_tcp() {
    for nranks in [2, 5] {
        let said = Job::start(ENTRY, nranks, "sums", &OVER_TCP).all_well();
        assert!(said.iter().all(|s| s == "done"), "{said:?}");
    }
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_the_others_over_tcp() {
    for (nranks, victim, pause) in [(2, 1, 5), (2, 0, 10), (4, 2, 0), (4, 0, 12)] {
        killed(Job::start(ENTRY, nranks, "forever", &OVER_TCP), victim, pause);
    }
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_the_others() {
    for (nranks, victim, pause) in [(2, 1, 5), (4, 2, 0), (4, 0, 12), (8, 5, 20)] {
        killed(Job::start(ENTRY, nranks, "forever", &[]), victim, pause);
    }
}

/// Kills a rank after some milliseconds of calls.
fn killed(mut job: Job, victim: usize, pause: u64) {
    for rank in 0..job.pids().len() {
        assert_eq!(job.hear(rank), "started");
    }
    std::thread::sleep(Duration::from_millis(pause));
    job.signal(victim, libc::SIGKILL);
    for rank in (0..job.pids().len()).filter(|r| *r != victim) {
        let said = job.hear(rank);
        assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_slow_and_not_dead() {
    stopped(Job::start(ENTRY, 3, "sums", &[]));
}

#[test]
fn a_rank_that_is_stopped_is_slow_and_not_dead_over_tcp() {
    stopped(Job::start(ENTRY, 3, "sums", &OVER_TCP));
}

fn stopped(mut job: Job) {
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(30));
        job.signal(1, libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(400));
        job.signal(1, libc::SIGCONT);
    }
    job.all_well();
}

#[test]
fn a_waiting_rank_sleeps() {
    sleeps(Job::start(ENTRY, 2, "late", &[]));
}

#[test]
fn a_waiting_rank_sleeps_over_tcp() {
    sleeps(Job::start(ENTRY, 2, "late", &OVER_TCP));
}

fn sleeps(mut job: Job) {
    let said = job.all_well();
    let milliseconds: u64 = said[0].parse().expect("a number");
    println!("a wait of 2 s took {milliseconds} ms of the processor");
    assert!(milliseconds < 500, "{milliseconds} ms of 2000 ms");
}

#[test]
fn signals_do_not_disturb() {
    Job::start(ENTRY, 3, "alarms", &[]).all_well();
    Job::start(ENTRY, 3, "alarms", &OVER_TCP).all_well();
}
