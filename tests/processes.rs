//! Ranks as processes: real all-reduces, and what happens on a bad day.
//!
//! Each test starts copies of this test binary as ranks (the ignored test `rank`), passes the unique id through their standard
//! input, and reads what they print. Every test has a watchdog.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use maypole::{Communicator, RedOp, UniqueId};

const PATIENCE: Duration = Duration::from_secs(60);

/// A job of rank processes; what is left of it is killed when it goes, or by its watchdog.
struct Job {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
    /// Dropped with the job, which tells the watchdog to go.
    _leash: mpsc::Sender<()>,
}

impl Job {
    fn start(nranks: u32, scene: &str) -> Self {
        Self::start_with(nranks, scene, &[])
    }

    /// With more of an environment.
    fn start_with(nranks: u32, scene: &str, environment: &[(&str, &str)]) -> Self {
        let id = UniqueId::create().expect("a unique id");
        let start = |rank: u32| {
            let mut child = Command::new(std::env::current_exe().expect("the test binary"))
                .args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"])
                .env("MAYPOLE_TEST_SCENE", format!("{scene} {rank} {nranks}"))
                .envs(environment.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("a rank process");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(&id.to_bytes()).expect("the rank reads its id");
            let out = BufReader::new(child.stdout.take().expect("a pipe"));
            (child, out)
        };
        let ranks: Vec<_> = (0..nranks).map(start).collect();
        let pids: Vec<u32> = ranks.iter().map(|(child, _)| child.id()).collect();
        let (leash, free) = mpsc::channel();
        std::thread::spawn(move || {
            if free.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the job hangs: its ranks are killed");
                pids.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
            }
        });
        Self { ranks, _leash: leash }
    }

    /// The next thing that rank `rank` says; empty if it ended.
    fn hear(&mut self, rank: usize) -> String {
        for line in self.ranks[rank].1.by_ref().lines() {
            if let Some((_, said)) = line.expect("text").split_once("say:") {
                return said.to_owned();
            }
        }
        String::new()
    }

    /// The last thing that each rank says; all must end well.
    fn all_well(&mut self) -> Vec<String> {
        (0..self.ranks.len())
            .map(|rank| {
                let said = self.hear(rank);
                assert_eq!(self.hear(rank), "", "rank {rank} says more");
                let status = self.ranks[rank].0.wait().expect("a child");
                assert!(status.success(), "rank {rank} failed: {status}");
                said
            })
            .collect()
    }

    fn signal(&self, rank: usize, number: libc::c_int) {
        signal(self.ranks[rank].0.id(), number);
    }
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: no memory is involved; the child is not yet reaped, so the number is still its own.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}

impl Drop for Job {
    fn drop(&mut self) {
        for (child, _) in &mut self.ranks {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Not a test of its own: what a rank process does.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Ok(scene) = std::env::var("MAYPOLE_TEST_SCENE") else { return };
    let words: Vec<&str> = scene.split(' ').collect();
    let (rank, nranks) = (words[1].parse().expect("a rank"), words[2].parse().expect("a count"));
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("128 bytes");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    let mut comm = Communicator::init(&id, nranks, rank).unwrap_or_else(|e| panic!("init: {e}"));
    match words[0] {
        "sums" => sums(&mut comm),
        "forever" => forever(&mut comm),
        "late" => late(&mut comm),
        "alarms" => alarms(&mut comm),
        other => panic!("no scene {other}"),
    }
}

/// Many calls of many sizes, each checked.
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

/// Calls until one fails; says how.
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

/// Rank 1 comes two seconds late; rank 0 says how much of the processor its wait took.
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

/// Many calls under a storm of signals whose handler does not restart system calls.
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
        let said = Job::start(nranks, "sums").all_well();
        assert!(said.iter().all(|s| s == "done"), "{said:?}");
    }
}

/// What makes ranks of one host use TCP, over two streams per pair.
const OVER_TCP: [(&str, &str); 3] =
    [("NCCL_SHM_DISABLE", "1"), ("NCCL_P2P_DISABLE", "1"), ("NCCL_NSOCKS_PERTHREAD", "2")];

#[test]
fn sums_are_right_over_tcp() {
    for nranks in [2, 5] {
        let said = Job::start_with(nranks, "sums", &OVER_TCP).all_well();
        assert!(said.iter().all(|s| s == "done"), "{said:?}");
    }
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_the_others_over_tcp() {
    for (nranks, victim, pause) in [(2, 1, 5), (2, 0, 10), (4, 2, 0), (4, 0, 12)] {
        killed(Job::start_with(nranks, "forever", &OVER_TCP), victim, pause);
    }
}

#[test]
fn a_rank_that_is_killed_is_named_by_all_the_others() {
    for (nranks, victim, pause) in [(2, 1, 5), (4, 2, 0), (4, 0, 12), (8, 5, 20)] {
        killed(Job::start(nranks, "forever"), victim, pause);
    }
}

/// Kills a rank after some milliseconds of calls.
fn killed(mut job: Job, victim: usize, pause: u64) {
    for rank in 0..job.ranks.len() {
        assert_eq!(job.hear(rank), "started");
    }
    std::thread::sleep(Duration::from_millis(pause));
    job.signal(victim, libc::SIGKILL);
    for rank in (0..job.ranks.len()).filter(|r| *r != victim) {
        let said = job.hear(rank);
        assert!(said.contains(&format!("process of rank {victim} died")), "{rank}: {said}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_slow_and_not_dead() {
    stopped(Job::start(3, "sums"));
}

#[test]
fn a_rank_that_is_stopped_is_slow_and_not_dead_over_tcp() {
    stopped(Job::start_with(3, "sums", &OVER_TCP));
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
    sleeps(Job::start(2, "late"));
}

#[test]
fn a_waiting_rank_sleeps_over_tcp() {
    sleeps(Job::start_with(2, "late", &OVER_TCP));
}

fn sleeps(mut job: Job) {
    let said = job.all_well();
    let milliseconds: u64 = said[0].parse().expect("a number");
    println!("a wait of 2 s took {milliseconds} ms of the processor");
    assert!(milliseconds < 500, "{milliseconds} ms of 2000 ms");
}

#[test]
fn signals_do_not_disturb() {
    Job::start(3, "alarms").all_well();
    Job::start_with(3, "alarms", &OVER_TCP).all_well();
}
