//! Tests of what counts as the death of a process, where `/proc` shows little or the wrong thing.
//! Some need root, and print that where they are skipped.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::ranks::{Invitation, Job, OVER_TCP, invitation};
use maypole::{Communicator, RedOp};

/// The tests that the processes of a rank and of a namespace run.
const ENTRY: &str = "identity::rank";
const STAGE: &str = "identity::stage";
/// Set in the process that runs a job in namespaces of its own.
const IN_NAMESPACE: &str = "MAYPOLE_TEST_IN_NAMESPACE";

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some(invitation) = invitation() else { return };
    match invitation.scene.as_str() {
        "sums" => sums(&invitation),
        "without-first-thread" => without_first_thread(&invitation),
        other => panic!("no scene {other}"),
    }
}

/// Makes calls for some time, in which a wrong suspicion would come true.
fn sums(invitation: &Invitation) {
    let Invitation { id, rank, nranks, .. } = invitation;
    let mut comm = Communicator::new(id, *rank, *nranks).unwrap_or_else(|e| panic!("init: {e}"));
    let started = Instant::now();
    let mut goes_on = true;
    while goes_on {
        // Rank 0 says whether there is another round.
        let more = i32::from(*rank == 0 && started.elapsed() < Duration::from_millis(200));
        for count in [1, 1000, 100_000] {
            let (send, mut recv) = (vec![more; count], vec![0; count]);
            comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("call: {e}"));
            goes_on = recv[0] == 1;
            assert!(recv.iter().all(|sum| *sum == i32::from(goes_on)));
        }
    }
    println!("say:done");
}

/// Makes calls after the first thread of the process has ended.
fn without_first_thread(invitation: &Invitation) {
    extern "C" fn end_thread(_: libc::c_int) {
        // SAFETY: it ends the thread that the signal has interrupted, and never returns to it.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    let pid = std::process::id();
    // SAFETY: the structure is valid and fully set; the first thread waits for this one, and holds
    // no lock.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end_thread as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        assert_ne!(libc::gettid(), pid.cast_signed(), "a test has a thread of its own");
        libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1);
    }
    let has_ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("this process");
        stat[stat.rfind(')').expect("a name") + 1..].trim_start().starts_with('Z')
    };
    while !has_ended() {
        std::thread::yield_now();
    }
    sums(invitation);
    std::process::exit(0);
}

#[test]
fn a_process_whose_first_thread_has_ended_is_not_dead() {
    for environment in [&[][..], &OVER_TCP] {
        let mut job = Job::start(ENTRY, 3, "without-first-thread", environment);
        job.all_say("done");
        (0..3).for_each(|rank| job.ends_well(rank));
    }
}

/// Runs the job of `stage` in a process that `unshare` starts with these options. False where it
/// cannot.
fn in_namespaces(job: &str, options: &[&str]) -> bool {
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: namespaces need root");
        return false;
    }
    let probe = Command::new("unshare").args(options).arg("true").output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: unshare {options:?} does not work here: {probe:?}");
        return false;
    }
    let output = Command::new("unshare")
        .args(options)
        .arg(std::env::current_exe().expect("the test binary"))
        .args(["--exact", STAGE, "--ignored", "--nocapture", "--test-threads=1"])
        .env(IN_NAMESPACE, job)
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let end = said.lines().find(|line| line.contains("complete") || line.contains("SKIPPED"));
    println!("{}", end.unwrap_or_else(|| panic!("{said}")));
    true
}

/// Not a test: the process that runs a job in namespaces.
#[test]
#[ignore = "run by the other tests, in namespaces"]
fn stage() {
    let Ok(job) = std::env::var(IN_NAMESPACE) else { return };
    if let Err(error) = use_numbers_that_proc_lacks() {
        return println!("SKIPPED: the numbers of processes cannot be set: {error}");
    }
    let environment = if job == "tcp" { &OVER_TCP[..] } else { &[] };
    let mut job = Job::start(ENTRY, 3, "sums", environment);
    job.all_say("done");
    (0..3).for_each(|rank| job.ends_well(rank));
    println!("the job is complete");
}

/// Gives the next processes of this namespace numbers that no process has in the namespace of
/// `/proc`.
fn use_numbers_that_proc_lacks() -> std::io::Result<()> {
    let is_free = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    let before = |first: &u32| (*first..first + 100).all(|pid| is_free(&pid));
    let last = (1000..30_000).step_by(100).rev().find(before);
    std::fs::write("/proc/sys/kernel/ns_last_pid", last.expect("free numbers").to_string())
}

/// The numbers of the ranks count in a new namespace, and `/proc` is that of another.
#[test]
fn a_proc_of_another_namespace_does_not_make_ranks_dead() {
    let _ =
        in_namespaces("shm", &["--pid", "--fork"]) && in_namespaces("tcp", &["--pid", "--fork"]);
}
