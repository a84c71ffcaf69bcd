//! A job of rank processes: copies of the test binary, each of which runs its ignored test `rank`.

#![allow(dead_code, reason = "not every test that runs jobs needs all of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use maypole::{Communicator, UniqueId};

/// Settings that make ranks of one host use TCP.
pub(crate) const OVER_TCP: [(&str, &str); 2] =
    [("NCCL_SHM_DISABLE", "1"), ("NCCL_P2P_DISABLE", "1")];

const JOB_TIMEOUT: Duration = Duration::from_secs(60);

/// A job of rank processes. Processes that still run are killed when it is dropped, or by its
/// watchdog.
pub(crate) struct Job {
    ranks: Vec<(Child, BufReader<ChildStdout>)>,
    stdins: Vec<ChildStdin>,
    /// Dropped with the job, which ends the watchdog.
    _watchdog: mpsc::Sender<()>,
}

impl Job {
    /// Starts the ranks with these variables. `NAME@2` stands for the variable NAME of rank 2.
    pub(crate) fn start(
        entry: &str,
        nranks: u32,
        scene: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_patient(entry, nranks, scene, environment, JOB_TIMEOUT)
    }

    /// As [`start`](Self::start), with this unique id.
    pub(crate) fn start_with(
        entry: &str,
        id: UniqueId,
        nranks: u32,
        scene: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::launch(entry, id, nranks, scene, environment, JOB_TIMEOUT)
    }

    /// As [`start`](Self::start), with another time after which the watchdog kills the job.
    pub(crate) fn start_patient(
        entry: &str,
        nranks: u32,
        scene: &str,
        environment: &[(&str, &str)],
        patience: Duration,
    ) -> Self {
        let id = UniqueId::create().expect("a unique id");
        Self::launch(entry, id, nranks, scene, environment, patience)
    }

    fn launch(
        entry: &str,
        id: UniqueId,
        nranks: u32,
        scene: &str,
        environment: &[(&str, &str)],
        patience: Duration,
    ) -> Self {
        let of = |rank: u32| {
            environment.iter().filter_map(move |(name, value)| match name.split_once('@') {
                None => Some((*name, *value)),
                Some((name, of)) => (of == rank.to_string()).then_some((name, *value)),
            })
        };
        let start = |rank: u32| {
            // Not by its path: there a build may have put another one, or none yet.
            let mut child = Command::new("/proc/self/exe")
                .args(["--exact", entry, "--ignored", "--nocapture", "--test-threads=1"])
                .env("MAYPOLE_TEST_SCENE", format!("{scene} {rank} {nranks}"))
                .envs(of(rank))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a rank process");
            let mut stdin = child.stdin.take().expect("a pipe");
            stdin.write_all(&id.to_bytes()).expect("the rank reads its id");
            let out = BufReader::new(child.stdout.take().expect("a pipe"));
            ((child, out), stdin)
        };
        let (ranks, stdins): (Vec<_>, _) = (0..nranks).map(start).unzip();
        let pids: Vec<u32> = ranks.iter().map(|(child, _)| child.id()).collect();
        let (stop, stopped) = mpsc::channel();
        std::thread::spawn(move || {
            if stopped.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the job hangs: its ranks are killed");
                pids.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
            }
        });
        Self { ranks, stdins, _watchdog: stop }
    }

    /// Lets a rank go on that [waits for a word](await_word) of the test.
    pub(crate) fn tell(&mut self, rank: usize) {
        self.stdins[rank].write_all(b"!").expect("the rank listens");
    }

    /// The next text that rank `rank` prints after `say:`; empty if the rank has ended.
    pub(crate) fn hear(&mut self, rank: usize) -> String {
        for line in self.ranks[rank].1.by_ref().lines() {
            if let Some((_, said)) = line.expect("text").split_once("say:") {
                return said.to_owned();
            }
        }
        String::new()
    }

    /// The next line of rank `rank` that contains `text`; empty if the rank has ended.
    pub(crate) fn hear_line(&mut self, rank: usize, text: &str) -> String {
        let mut lines = self.ranks[rank].1.by_ref().lines().map(|line| line.expect("text"));
        lines.find(|line| line.contains(text)).unwrap_or_default()
    }

    /// Waits until all ranks have printed `word` after `say:`.
    pub(crate) fn all_say(&mut self, word: &str) {
        for rank in 0..self.ranks.len() {
            assert_eq!(self.hear(rank), word, "rank {rank}");
        }
    }

    /// What a rank has written to standard error, up to a line that contains `end`.
    pub(crate) fn errors_until(&mut self, rank: usize, end: &str) -> String {
        let mut text = String::new();
        let mut lines = BufReader::new(self.ranks[rank].0.stderr.take().expect("a pipe"));
        while lines.read_line(&mut text).expect("text") > 0 && !text.contains(end) {}
        text
    }

    /// Waits for the process of a rank, which must end without an error.
    pub(crate) fn ends_well(&mut self, rank: usize) {
        let status = self.ranks[rank].0.wait().expect("a child");
        assert!(status.success(), "rank {rank} failed: {status}");
    }

    /// The only text that each rank prints after `say:`. All ranks must end without an error.
    pub(crate) fn all_well(&mut self) -> Vec<String> {
        (0..self.ranks.len())
            .map(|rank| {
                let said = self.hear(rank);
                assert_eq!(self.hear(rank), "", "rank {rank} says more");
                self.ends_well(rank);
                said
            })
            .collect()
    }

    /// The process numbers of the ranks.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.ranks.iter().map(|(child, _)| child.id()).collect()
    }

    pub(crate) fn signal(&self, rank: usize, number: libc::c_int) {
        signal(self.ranks[rank].0.id(), number);
    }
}

pub(crate) fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: the call takes numbers only. The process is a child that was not waited for, or a
    // child of one that outlives the test, so the number is not reused.
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

/// In a rank process: the scene's name and the communicator; None if this is no rank process.
pub(crate) fn enter() -> Option<(String, Communicator)> {
    let Invitation { scene, id, rank, nranks } = invitation()?;
    let comm = Communicator::new(&id, rank, nranks).unwrap_or_else(|e| panic!("init: {e}"));
    Some((scene, comm))
}

/// What the test passes to a rank process.
pub(crate) struct Invitation {
    pub(crate) scene: String,
    pub(crate) id: UniqueId,
    pub(crate) rank: u32,
    pub(crate) nranks: u32,
}

/// In a rank process; None elsewhere.
pub(crate) fn invitation() -> Option<Invitation> {
    let scene = std::env::var("MAYPOLE_TEST_SCENE").ok()?;
    let words: Vec<&str> = scene.split(' ').collect();
    let (rank, nranks) = (words[1].parse().expect("a rank"), words[2].parse().expect("a count"));
    let mut bytes = [0; 128];
    std::io::stdin().read_exact(&mut bytes).expect("128 bytes");
    let id = UniqueId::from_bytes(bytes).expect("an id");
    Some(Invitation { scene: words[0].to_owned(), id, rank, nranks })
}

/// In a rank process: waits until the test [says](Job::tell) that this rank may go on.
pub(crate) fn await_word() {
    std::io::stdin().read_exact(&mut [0]).expect("the test says it");
}

/// Raises the soft limit of descriptors to the hard one, which it returns.
pub(crate) fn raise_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is alive and of the type that the call writes.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is alive.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    limit.rlim_max
}

/// The part of `rounds` that a test does: all, or the share in percent that `MAYPOLE_TEST_SHARE`
/// asks for, but not fewer than `least`.
#[allow(dead_code, reason = "not every test binary has tests that are long")]
pub(crate) fn share_of(rounds: u32, least: u32) -> u32 {
    let share = std::env::var("MAYPOLE_TEST_SHARE").ok();
    let share: u32 = share.map_or(100, |text| text.parse().expect("a percentage"));
    (u64::from(rounds) * u64::from(share) / 100).max(least.into()) as u32
}
