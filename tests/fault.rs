//! Ranks as processes, one of which dies or aborts at a random moment: the others name it, go on without it, and leave
//! nothing behind.
//!
//! Each moment is a job: copies of this test binary that run the ignored test `rank`, with the moment in `MAYPOLE_FAULT`.
//! Every job has a watchdog.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use maypole::{Communicator, Error, RedOp, UniqueId};
use maypole_transport::LinkError;

const PATIENCE: Duration = Duration::from_secs(60);

/// When something happens to whom.
#[derive(Clone, Copy, Debug)]
struct Moment {
    nranks: u32,
    victim: u32,
    /// The message of the victim's at which it happens.
    message: u64,
    /// It dies; else it aborts.
    dies: bool,
    seed: u64,
}

impl Moment {
    fn random(seed: u64) -> Self {
        let mut state = seed;
        let mut below = |n: u64| {
            // The step of splitmix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % n
        };
        let nranks = [4, 8][below(2) as usize];
        let victim = below(nranks.into()) as u32;
        Self { nranks, victim, message: 1 + below(300), dies: below(2) == 0, seed }
    }

    /// Runs the job and checks what its ranks say.
    fn run(self) {
        let Self { nranks, victim, message, dies, seed } = self;
        let how = if dies { "kill" } else { "abort" };
        let fault = format!("seed={seed},delay=0.02:50us,{how}={victim}:{message}");
        let folder = tempfile::tempdir().expect("a folder");
        let before = shared_memory();
        let id = UniqueId::create().expect("a unique id");
        let ranks = (0..nranks).map(|rank| {
            let mut child = Command::new(std::env::current_exe().expect("the test binary"))
                .args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"])
                .env("MAYPOLE_TEST_RANK", format!("{rank} {nranks}"))
                .env("MAYPOLE_FAULT", &fault)
                .env("MAYPOLE_INIT_TIMEOUT", "30")
                .env("TMPDIR", folder.path())
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
        for rank in 0..nranks {
            let (said, status) = job.hear(rank as usize);
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
    }
}

/// What we could have left in the one place where memory has names.
fn shared_memory() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten();
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("maypole"))
        .collect()
}

/// The rank processes; what is left of them is killed when the job goes, or by its watchdog.
struct Job {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
    /// Dropped with the job, which tells the watchdog to go.
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
                    // SAFETY: no memory is involved; the job that holds the children still exists.
                    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
                }
            }
        });
        Self { ranks, _leash: leash }
    }

    /// All that a rank says until its end, and how it ended.
    fn hear(&mut self, rank: usize) -> (Vec<String>, ExitStatus) {
        let (child, out) = &mut self.ranks[rank];
        let lines = out.lines().map(|line| line.expect("text"));
        let said = lines.filter_map(|l| Some(l.split_once("say:")?.1.to_owned())).collect();
        (said, child.wait().expect("a child"))
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

/// Not a test of its own: what a rank process does.
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
    let mut comm = Communicator::init(&id, nranks, rank).unwrap_or_else(|e| panic!("init: {e}"));
    let mut calls = 0..;
    let error = calls.find_map(|call| sum(&mut comm, call).err()).expect("it does not end");
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
    for call in 0..30 {
        sum(&mut left, call).unwrap_or_else(|e| panic!("call {call} of the others: {e}"));
    }
    drop((comm, left));
    let until = Instant::now() + PATIENCE / 2;
    // The thread that let the others in ends when it has seen them go.
    while Holdings::now() != before {
        assert!(Instant::now() < until, "before: {before:?}, after: {:?}", Holdings::now());
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("say:done");
}

/// A call that is checked.
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

/// What a process holds of the system.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Mappings of memory that is or could be shared.
    shared: usize,
}

impl Holdings {
    fn now() -> Self {
        let count = |folder| std::fs::read_dir(folder).expect("a folder of /proc").count();
        let tasks = std::fs::read_dir("/proc/self/task").expect("a folder of /proc");
        // A thread that has just ended has no file any more, and no children.
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
    (0..20).for_each(|seed| Moment::random(seed).run());
}

/// By hand or in the full matrix: `cargo test --release -p maypole --test fault many -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn survivors_of_many_random_moments_go_on_and_nothing_is_left() {
    (1000..1200).for_each(|seed| Moment::random(seed).run());
}
