//! Tests in which one of several rank processes dies or aborts at a random moment: the others name
//! it, go on without it, and leave nothing behind.
//!
//! Each moment is a job: copies of this test binary that run the ignored test `rank`, with the
//! moment in `MAYPOLE_FAULT`. Every job has a watchdog.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::ranks::OVER_TCP;
use crate::splitmix::Random;
use maypole::{Communicator, Error, RedOp, UniqueId};
use maypole_transport::LinkError;

/// The test that a rank process runs.
const ENTRY: &str = "fault::rank";

const PATIENCE: Duration = Duration::from_secs(60);

/// Over TCP all messages are sent from memory of the caller, which is freed after the failure.
const LENT: (&str, &str) = ("MAYPOLE_LEND_FROM", "1");

/// What happens to which rank, and when.
#[derive(Clone, Copy, Debug)]
struct Moment {
    nranks: u32,
    victim: u32,
    what: What,
    seed: u64,
    /// Whether the ranks use TCP although they are on one host.
    over_tcp: bool,
}

/// What happens to the victim.
#[derive(Clone, Copy, Debug)]
enum What {
    /// It dies when it sends its message of this number.
    Dies(u64),
    /// It aborts when it sends its message of this number.
    Aborts(u64),
    /// It is killed this long after all ranks have made a call.
    Killed(Duration),
}

impl Moment {
    fn random(seed: u64) -> Self {
        let mut random = Random(seed);
        let nranks = random.pick(&[4, 8]);
        let victim = random.below(nranks.into()) as u32;
        let message = 1 + random.below(300);
        let what = if random.below(2) == 0 { What::Dies(message) } else { What::Aborts(message) };
        Self { nranks, victim, what, seed, over_tcp: false }
    }

    /// One of 8 ranks is killed.
    fn random_kill(seed: u64, over_tcp: bool) -> Self {
        let moment = Self::random(seed);
        let (What::Dies(random) | What::Aborts(random)) = moment.what else { return moment };
        let what = What::Killed(Duration::from_micros(random * 250));
        Self { nranks: 8, victim: (random % 8) as u32, what, over_tcp, ..moment }
    }

    /// Runs the job and checks what its ranks print. Returns the time from a kill to the error of
    /// the last survivor.
    fn run(self) -> Duration {
        let Self { nranks, victim, what, seed, over_tcp } = self;
        let end = match what {
            What::Dies(message) => format!(",kill={victim}:{message}"),
            What::Aborts(message) => format!(",abort={victim}:{message}"),
            What::Killed(_) => String::new(),
        };
        let dies = !matches!(what, What::Aborts(_));
        let fault = format!("seed={seed},delay=0.02:50us{end}");
        let folder = tempfile::tempdir().expect("a folder");
        let before = shared_memory();
        let id = UniqueId::create().expect("a unique id");
        let ranks = (0..nranks).map(|rank| {
            let mut child = Command::new("/proc/self/exe")
                .args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"])
                .env("MAYPOLE_TEST_RANK", format!("{rank} {nranks}"))
                .env("MAYPOLE_FAULT", &fault)
                .env("MAYPOLE_INIT_TIMEOUT", "30")
                .env("TMPDIR", folder.path())
                .envs(OVER_TCP.into_iter().chain([LENT]).filter(|_| over_tcp))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a rank process");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(&id.to_bytes()).expect("the rank reads its id");
            let out = BufReader::new(child.stdout.take().expect("a pipe"));
            (child, out)
        });
        let mut job = Job::new(ranks.collect());
        let mut killed = 0;
        if let What::Killed(after) = what {
            (0..nranks).for_each(|rank| job.hear_start(rank as usize));
            std::thread::sleep(after);
            killed = clock();
            job.kill(victim as usize);
        }
        let mut last = killed;
        for rank in 0..nranks {
            let (said, failed_at, status) = job.hear(rank as usize);
            last = last.max(failed_at);
            let expected = match (rank == victim, dies) {
                (true, true) => vec![],
                (true, false) => vec![format!("aborted {victim}")],
                (false, true) => vec![format!("died {victim}"), "done".to_owned()],
                (false, false) => vec![format!("aborted {victim}"), "done".to_owned()],
            };
            assert_eq!(said, expected, "rank {rank}, {self:?}");
            let signal = (rank == victim && dies).then_some(libc::SIGKILL);
            assert_eq!(status.signal(), signal, "rank {rank}, {self:?}");
            assert!(signal.is_some() || status.success(), "rank {rank}, {self:?}: {status}");
        }
        let left = std::fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(left, 0, "files are left, {self:?}");
        assert!(shared_memory().is_subset(&before), "shared memory is left, {self:?}");
        Duration::from_nanos(last - killed)
    }
}

/// Nanoseconds of the clock that all processes share.
fn clock() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The names in /dev/shm that belong to the library.
fn shared_memory() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten();
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("maypole"))
        .collect()
}

/// The rank processes. Processes that still run are killed when the job is dropped, or by its
/// watchdog.
struct Job {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
    /// Dropped with the job, which ends the watchdog.
    _leash: mpsc::Sender<()>,
}

impl Job {
    fn new(ranks: Vec<(Child, BufReader<ChildStdout>)>) -> Self {
        let pids: Vec<u32> = ranks.iter().map(|(child, _)| child.id()).collect();
        let (leash, free) = mpsc::channel();
        std::thread::spawn(move || {
            if free.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the job hangs: its ranks are killed");
                for pid in pids {
                    // SAFETY: the call takes numbers only; the job that has the children still
                    // exists.
                    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                }
            }
        });
        Self { ranks, _leash: leash }
    }

    /// Waits until a rank has made its first call.
    fn hear_start(&mut self, rank: usize) {
        let mut lines = self.ranks[rank].1.by_ref().lines().map(|line| line.expect("text"));
        assert!(lines.any(|line| line.contains("started:")), "rank {rank} does not start");
    }

    fn kill(&mut self, rank: usize) {
        self.ranks[rank].0.kill().expect("a child");
    }

    /// Everything that a rank prints until its end, the time of its failure if it prints one, and
    /// its exit status.
    fn hear(&mut self, rank: usize) -> (Vec<String>, u64, ExitStatus) {
        let (child, out) = &mut self.ranks[rank];
        let (mut said, mut failed_at) = (Vec::new(), 0);
        for line in out.lines().map(|line| line.expect("text")) {
            if let Some((_, what)) = line.split_once("say:") {
                said.push(what.to_owned());
            } else if let Some((_, at)) = line.split_once("failed at:") {
                failed_at = at.parse().expect("nanoseconds");
            }
        }
        (said, failed_at, child.wait().expect("a child"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for (child, _) in &mut self.ranks {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Ok(role) = std::env::var("MAYPOLE_TEST_RANK") else { return };
    let (rank, nranks) = role.split_once(' ').expect("two numbers");
    let (rank, nranks) = (rank.parse().expect("a rank"), nranks.parse().expect("a count"));
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("128 bytes");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    let before = Holdings::now();
    let mut comm = Communicator::new(&id, rank, nranks).unwrap_or_else(|e| panic!("init: {e}"));
    let mut calls = 0..;
    let error = calls.find_map(|call| {
        let error = sum(&mut comm, call).err();
        if call == 0 && error.is_none() {
            println!("started:");
        }
        error
    });
    let error = error.expect("it does not end");
    println!("failed at:{}", clock());
    let victim = match error {
        Error::Link(LinkError::PeerDied { peer }) => {
            println!("say:died {peer}");
            peer
        }
        Error::Aborted { by } => {
            println!("say:aborted {by}");
            by
        }
        other => panic!("rank {rank} in call {}: {other:?}", calls.start - 1),
    };
    if victim == rank {
        return;
    }
    let mut left = comm.shrink(&[victim]).unwrap_or_else(|e| panic!("shrink: {e}"));
    assert_eq!(left.nranks(), nranks - 1);
    for call in 0..crate::ranks::share_of(30, 8) {
        sum(&mut left, call).unwrap_or_else(|e| panic!("call {call} of the others: {e}"));
    }
    drop((comm, left));
    let until = Instant::now() + PATIENCE / 2;
    // The thread that accepted the others ends when their connections have ended.
    while Holdings::now() != before {
        assert!(Instant::now() < until, "before: {before:?}, after: {:?}", Holdings::now());
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("say:done");
}

/// Makes a call and checks its result.
fn sum(comm: &mut Communicator, call: u32) -> Result<(), Error> {
    let (rank, n) = (comm.rank(), comm.nranks());
    let count = [1, 700, 20_000, 200_000][call as usize % 4];
    let send: Vec<u32> = (0..count).map(|i| i * 7 + call + rank).collect();
    let mut recv = vec![0; send.len()];
    comm.all_reduce(&send, &mut recv, RedOp::Sum)?;
    let right = (0..count).map(|i| n * (i * 7 + call) + n * (n - 1) / 2);
    assert!(recv.into_iter().eq(right), "call {call} is wrong");
    Ok(())
}

/// The resources that a process has.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Mappings of memory that is shared or can be.
    shared: usize,
}

impl Holdings {
    fn now() -> Self {
        let count = |folder| std::fs::read_dir(folder).expect("a folder of /proc").count();
        let tasks = std::fs::read_dir("/proc/self/task").expect("a folder of /proc");
        // A thread that has just ended has no file, and no children.
        let children = |task: std::fs::DirEntry| {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            text.split_whitespace().count()
        };
        let maps = std::fs::read_to_string("/proc/self/maps").expect("a file of /proc");
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children: tasks.map(|task| children(task.expect("an entry"))).sum(),
            shared: maps.lines().filter(|l| l.contains("memfd:") || l.contains("/dev/shm")).count(),
        }
    }
}

#[test]
fn survivors_of_a_random_moment_go_on_and_nothing_is_left() {
    (0..crate::ranks::share_of(20, 5)).for_each(|seed| _ = Moment::random(seed.into()).run());
}

/// Kills ranks one after the other, each in a job of its own, and prints how long the others took
/// to notice.
fn kill(seeds: std::ops::Range<u64>, over_tcp: bool) {
    let times = seeds.map(|seed| Moment::random_kill(seed, over_tcp).run());
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let (half, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{} kills: all survivors knew after {half:?} in the middle, {last:?} at most",
        times.len()
    );
}

#[test]
fn survivors_of_a_kill_go_on() {
    kill(0..crate::ranks::share_of(4, 2).into(), false);
}

#[test]
fn survivors_of_a_kill_go_on_over_tcp() {
    kill(0..crate::ranks::share_of(4, 2).into(), true);
}

/// To run it: `cargo test --release -p maypole --test ranks many -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn survivors_of_many_random_moments_go_on_and_nothing_is_left() {
    (1000..1200).for_each(|seed| _ = Moment::random(seed).run());
}

#[test]
#[ignore = "takes minutes"]
fn survivors_of_many_kills_go_on() {
    kill(2000..2200, false);
}

#[test]
#[ignore = "takes minutes"]
fn survivors_of_many_kills_go_on_over_tcp() {
    kill(2000..2200, true);
}
