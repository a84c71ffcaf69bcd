//! Ranks as processes that die, stop, leave or have child processes, and what the others learn.

use std::time::{Duration, Instant};

use maypole::{Communicator, DelayReason, Error, RedOp};

use super::sum;
use crate::ranks::{Job, OVER_TCP, await_word, share_of, signal};
use crate::splitmix::Random;

/// The test that a rank process runs.
const ENTRY: &str = "control::processes::rank";

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some((scene, mut comm)) = crate::ranks::enter() else { return };
    match scene.as_str() {
        "forever" => forever(&mut comm),
        "idle" => idle(&comm),
        "orphan" => orphan(&mut comm),
        "fork" => fork(comm),
        "until-reported" => until_reported(&mut comm),
        "late" => late(&mut comm),
        "farewell" => farewell(comm),
        "exit" => exit(comm),
        other => panic!("no scene {other}"),
    }
}

/// Makes calls until one fails, and prints the error.
fn forever(comm: &mut Communicator) {
    let (send, mut recv) = (vec![1.0f32; 1 << 18], vec![0.0f32; 1 << 18]);
    sum(comm, 1).expect("a first call");
    println!("say:started");
    loop {
        for count in [1, 1 << 18, 2000] {
            if let Err(error) = comm.all_reduce(&send[..count], &mut recv[..count], RedOp::Sum) {
                println!("say:{error}");
                return;
            }
        }
    }
}

/// Makes no call, and prints the error that ends the communicator.
fn idle(comm: &Communicator) {
    println!("say:started");
    loop {
        if let Some(error) = comm.async_error() {
            println!("say:{error}");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Rank 1 has a child process that inherits all its sockets and outlives it.
fn orphan(comm: &mut Communicator) {
    sum(comm, 1).expect("a first call");
    if comm.rank() == 1 {
        // SAFETY: the child calls only functions that are allowed in a child of a process with many
        // threads.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above. The alarm ends the child if the test does not.
            unsafe {
                libc::alarm(30);
                loop {
                    libc::pause();
                }
            }
        }
        println!("say:{child}");
    }
    forever(comm);
}

/// Rank 0 has a child process that uses the communicator and drops it, without effect on the
/// parent.
fn fork(mut comm: Communicator) {
    sum(&mut comm, 1).expect("a first call");
    if comm.rank() == 0 {
        // SAFETY: glibc's allocator works in the child, and it uses nothing else that another
        // thread could hold.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_fork_error = |what: &str| what.contains("fork");
            let is_refused = |result: Result<(), Error>| match result {
                Err(Error::InvalidUsage { what }) => is_fork_error(&what),
                _ => false,
            };
            let refused = is_refused(sum(&mut comm, 1).map(drop)) && is_refused(comm.send(&[1], 1));
            drop(comm);
            // SAFETY: it ends the process at once.
            unsafe { libc::_exit(if refused { 0 } else { 1 }) };
        }
        let mut status = 1;
        // SAFETY: `status` is writable.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        println!("say:{status}");
    }
    let nranks = comm.nranks() as i32;
    for _ in 0..1000 {
        assert_eq!(sum(&mut comm, 1).expect("a call"), nranks);
    }
    println!("say:done");
}

/// Makes calls until rank 0 has a report, and prints that.
fn until_reported(comm: &mut Communicator) {
    sum(comm, 1).expect("a first call");
    println!("say:started");
    while sum(comm, i32::from(comm.rank() == 0 && !comm.reports().is_empty())).expect("a call") == 0
    {
    }
    if let Some(report) = comm.reports().first() {
        println!("say:{report}");
    }
}

/// Rank 1 makes the second call late, by the seconds of the environment variable; the others print
/// their last report.
fn late(comm: &mut Communicator) {
    sum(comm, 1).expect("a first call");
    println!("say:started");
    if comm.rank() == 1 {
        std::thread::sleep(seconds(LATE, 300));
    }
    let nranks = comm.nranks() as i32;
    assert_eq!(sum(comm, 1).expect("the rank comes"), nranks);
    let named = |r: &&maypole::Report| r.culprit() == 1 && r.reason == DelayReason::NotJoined;
    let reports = comm.reports();
    println!(
        "say:{}",
        reports.iter().filter(named).map(ToString::to_string).next_back().unwrap_or_default()
    );
}

/// Variables that set how long the slow tests take, in seconds.
const STOPPED: &str = "MAYPOLE_TEST_STOPPED";
const LATE: &str = "MAYPOLE_TEST_LATE";

fn seconds(variable: &str, otherwise: u64) -> Duration {
    let value = std::env::var(variable).ok();
    Duration::from_secs(value.map_or(otherwise, |value| value.parse().expect("seconds")))
}

/// Rank 0 leaves while rank 1 is stopped.
fn farewell(mut comm: Communicator) {
    sum(&mut comm, 1).expect("a first call");
    println!("say:started");
    std::thread::sleep(Duration::from_millis(500));
    drop(comm);
    println!("say:gone");
}

/// Rank 1 ends its process without dropping its communicator. The others fail only at the next
/// call.
fn exit(mut comm: Communicator) {
    let mut large = vec![1.0f32; 1 << 20];
    comm.all_reduce_in_place(&mut large, RedOp::Sum).expect("a first call");
    if comm.rank() == 1 {
        std::process::exit(0);
    }
    // Until rank 1 has ended.
    await_word();
    println!("say:{:?}", comm.async_error());
    // Until the others have looked too, because the next call fails on all ranks.
    await_word();
    println!(
        "say:{}",
        comm.all_reduce_in_place(&mut large, RedOp::Sum).expect_err("rank 1 is gone")
    );
}

/// Kills one of 8 ranks at a random moment; all others must name it.
fn kill_at_random(times: u64, salt: u64) {
    let mut random = Random(salt);
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        let victim = random.below(8) as usize;
        let mut job = Job::start(ENTRY, 8, "forever", &[]);
        job.all_say("started");
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        let killed = Instant::now();
        job.signal(victim, libc::SIGKILL);
        for rank in (0..8).filter(|rank| *rank != victim) {
            let said = job.hear(rank);
            assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
        }
        longest = longest.max(killed.elapsed());
    }
    println!("all knew after {longest:?} at most");
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_the_others() {
    kill_at_random(share_of(20, 6).into(), 1);
}

#[test]
#[ignore = "takes minutes"]
fn a_rank_that_is_killed_is_named_by_all_the_others_at_any_moment() {
    // Each job has its own watchdog, so the number of jobs does not matter.
    kill_at_random(200, 2);
}

#[test]
fn a_death_reaches_ranks_that_have_no_links_and_wait_for_nothing() {
    for victim in [0, 1, 6] {
        let mut job = Job::start(ENTRY, 7, "idle", &[]);
        job.all_say("started");
        job.signal(victim, libc::SIGKILL);
        for rank in (0..7).filter(|rank| *rank != victim) {
            let said = job.hear(rank);
            assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
        }
    }
}

#[test]
fn a_child_that_holds_the_sockets_of_a_dead_rank_does_not_hide_its_death() {
    let mut job = Job::start(ENTRY, 4, "orphan", &[]);
    let child: u32 = job.hear(1).parse().expect("a process");
    job.all_say("started");
    let killed = Instant::now();
    job.signal(1, libc::SIGKILL);
    for rank in [0, 2, 3] {
        let said = job.hear(rank);
        assert!(said.contains("process of rank 1 died"), "{rank}: {said}");
    }
    println!("all knew after {:?}", killed.elapsed());
    signal(child, libc::SIGKILL);
}

#[test]
fn a_child_made_by_fork_can_neither_use_nor_harm_a_communicator() {
    let mut job = Job::start(ENTRY, 3, "fork", &[]);
    assert_eq!(job.hear(0), "0", "the child was not refused");
    job.all_say("done");
    (0..3).for_each(|rank| job.ends_well(rank));
}

#[test]
fn a_stopped_rank_is_reported_as_such_and_may_go_on() {
    let environment = [("MAYPOLE_REPORT", "1"), ("NCCL_DEBUG", "WARN")];
    let mut job = Job::start(ENTRY, 4, "until-reported", &environment);
    job.all_say("started");
    job.signal(3, libc::SIGSTOP);
    let line = job.hear_line(0, "is stopped");
    job.signal(3, libc::SIGCONT);
    assert!(line.contains("rank 3 (host"), "{line}");
    (0..4).for_each(|rank| job.ends_well(rank));
}

/// Slowness is never an error, however long it lasts.
#[test]
#[ignore = "takes a minute; MAYPOLE_TEST_STOPPED sets the seconds"]
fn a_rank_that_is_stopped_for_a_minute_is_reported_meanwhile_and_the_job_completes() {
    let pause = seconds(STOPPED, 60);
    let environment = [("NCCL_DEBUG", "WARN")];
    let patience = pause + Duration::from_secs(60);
    let mut job = Job::start_patient(ENTRY, 4, "until-reported", &environment, patience);
    job.all_say("started");
    job.signal(3, libc::SIGSTOP);
    let stopped = Instant::now();
    let line = job.hear_line(0, "is stopped");
    let heard = stopped.elapsed();
    assert!(line.contains("rank 3 (host") && heard < pause, "after {heard:?}: {line}");
    println!("reported after {heard:?}: {line}");
    std::thread::sleep(pause.saturating_sub(heard));
    job.signal(3, libc::SIGCONT);
    println!("completed; rank 0 says: {}", job.hear(0));
    (0..4).for_each(|rank| job.ends_well(rank));
}

#[test]
#[ignore = "takes five minutes; MAYPOLE_TEST_LATE sets the seconds"]
fn a_rank_that_comes_five_minutes_late_is_reported_as_absent_and_the_job_completes() {
    let patience = seconds(LATE, 300) + Duration::from_secs(60);
    let mut job = Job::start_patient(ENTRY, 4, "late", &[], patience);
    job.all_say("started");
    for rank in [0, 2, 3] {
        let said = job.hear(rank);
        assert!(said.contains("rank 1 (host"), "rank {rank}: {said}");
        println!("rank {rank} said at the end: {said}");
    }
    (0..4).for_each(|rank| job.ends_well(rank));
}

#[test]
fn leaving_does_not_wait_for_other_ranks() {
    let mut job = Job::start(ENTRY, 3, "farewell", &[]);
    job.all_say("started");
    job.signal(1, libc::SIGSTOP);
    for rank in [0, 2] {
        assert_eq!(job.hear(rank), "gone");
        job.ends_well(rank);
    }
    job.signal(1, libc::SIGCONT);
    assert_eq!(job.hear(1), "gone");
    job.ends_well(1);
}

#[test]
fn a_process_that_exits_ends_only_ranks_that_wait_for_it() {
    for environment in [&[][..], &OVER_TCP] {
        let mut job = Job::start(ENTRY, 4, "exit", environment);
        job.ends_well(1);
        // A wrong suspicion would come true.
        std::thread::sleep(Duration::from_millis(500));
        [0, 2, 3].into_iter().for_each(|rank| job.tell(rank));
        for rank in [0, 2, 3] {
            assert_eq!(job.hear(rank), "None");
        }
        [0, 2, 3].into_iter().for_each(|rank| job.tell(rank));
        for rank in [0, 2, 3] {
            let said = job.hear(rank);
            assert!(said.contains("rank 1 destroyed its communicator"), "{rank}: {said}");
        }
    }
}

#[test]
fn the_last_calls_are_written_at_the_dump_signal() {
    let mut job = Job::start(ENTRY, 2, "idle", &[("MAYPOLE_DUMP_SIGNAL", "SIGUSR2")]);
    job.all_say("started");
    job.signal(1, libc::SIGUSR2);
    let text = job.errors_until(1, "no call yet");
    assert!(text.contains("rank 1 of 2: after no call yet"), "{text}");
    let mut job = Job::start(ENTRY, 2, "forever", &[("MAYPOLE_DUMP_SIGNAL", "USR2")]);
    job.all_say("started");
    std::thread::sleep(Duration::from_millis(300));
    job.signal(0, libc::SIGUSR2);
    let text = job.errors_until(0, "262144 float sum");
    assert!(text.contains("rank 0 of 2") && text.contains("all_reduce of"), "{text}");
}
