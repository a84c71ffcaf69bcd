//! Tests of many ranks on few cores: that they work, and what it costs each rank to join.
//!
//! Seconds are printed and not asserted. Numbers of connections and messages are asserted: they do
//! not depend on the machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use maypole::ControlTraffic;
use maypole::{Communicator, RedOp, UniqueId};

use crate::ranks::Job;

/// The test that a rank process runs.
const ENTRY: &str = "scale::rank";

/// Connections of a rank in the control tree, and the temporary one to the root.
const MOST_CONNECTIONS: u32 = 3 + 1;
/// Messages of a rank during init, sent and received together, for each doubling of the number of
/// ranks. The usual number is 15 for any number of ranks; each report of missing ranks, to all,
/// takes three more.
const MESSAGES_PER_DOUBLING: u64 = 4;
/// Descriptors that a process takes for each of its ranks while it joins, and for everything else.
const DESCRIPTORS: (u64, u64) = (16, 100);

/// Not a test: the code of a process of several ranks.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    match std::env::var("MAYPOLE_TEST_SCENE").as_deref() {
        Err(_) => {}
        Ok("root") => root(),
        Ok(scene) if scene.starts_with("sums ") => {
            let (_, mut comm) = crate::ranks::enter().expect("a rank process");
            sums(&mut comm);
        }
        Ok(_) => threads(),
    }
}

/// 1000 all-reduces of 1 KiB or a share of them, each checked.
fn sums(comm: &mut Communicator) {
    println!("say:joined");
    let (rank, n) = (comm.rank() as i32, comm.nranks() as i32);
    let mut recv = [0i32; 256];
    let started = Instant::now();
    let calls = crate::ranks::share_of(1000, 100) as i32;
    for call in 0..calls {
        let send: [i32; 256] = std::array::from_fn(|i| i as i32 * 7 + call + rank * (call % 5));
        comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
        let of_ranks = n * (n - 1) / 2 * (call % 5);
        for (i, sum) in recv.iter().enumerate() {
            assert_eq!(*sum, n * (i as i32 * 7 + call) + of_ranks, "call {call}, element {i}");
        }
    }
    println!("say:{:.2}", started.elapsed().as_secs_f64());
}

#[test]
fn sixty_four_processes_on_few_cores() {
    let _alone = crate::alone();
    let started = Instant::now();
    let mut job = Job::start(ENTRY, 64, "sums", &[]);
    job.all_say("joined");
    let joined = started.elapsed();
    let seconds: Vec<f64> = (0..64).map(|rank| job.hear(rank).parse().expect("a number")).collect();
    (0..64).for_each(|rank| job.ends_well(rank));
    println!(
        "64 processes started and joined in {:.2} s; {} all-reduces of 1 KiB took {:.2} s",
        joined.as_secs_f64(),
        crate::ranks::share_of(1000, 100),
        seconds.into_iter().fold(0.0, f64::max)
    );
}

/// The ranks of one process, as threads; each prints what it took to join.
fn threads() {
    let invitation = crate::ranks::invitation().expect("a rank process");
    let per_process: u32 = invitation.scene.parse().expect("threads of a process");
    crate::ranks::raise_descriptors();
    let nranks = invitation.nranks * per_process;
    let ranks: Vec<_> = (invitation.rank * per_process..(invitation.rank + 1) * per_process)
        .map(|rank| {
            let join = move || Communicator::new(&invitation.id, rank, nranks);
            std::thread::Builder::new().stack_size(512 << 10).spawn(join).expect("a thread")
        })
        .collect();
    let comms: Vec<Communicator> = ranks
        .into_iter()
        .map(|rank| rank.join().expect("it ran").unwrap_or_else(|e| panic!("init: {e}")))
        .collect();
    println!("say:joined");
    let most =
        comms.iter().map(Communicator::init_traffic).fold(ControlTraffic::default(), |a, b| {
            ControlTraffic {
                connections: a.connections.max(b.connections),
                sent: a.sent.max(b.sent),
                received: a.received.max(b.received),
            }
        });
    for comm in &comms {
        let ControlTraffic { connections, sent, received } = comm.init_traffic();
        assert!(connections <= MOST_CONNECTIONS, "rank {}: {connections}", comm.rank());
        let bound = MESSAGES_PER_DOUBLING * u64::from(nranks.ilog2());
        assert!(sent + received <= bound, "rank {}: {sent} + {received}", comm.rank());
        assert!(
            connections >= 2 && sent >= 4 && received >= 2,
            "rank {}: {connections} connections, {sent} sent, {received} received",
            comm.rank()
        );
    }
    println!("say:{} {} {}", most.connections, most.sent, most.received);
}

#[test]
fn a_thousand_ranks_join_by_a_few_messages_each() {
    let _alone = crate::alone();
    // A share of the test has processes of many ranks only.
    let shapes = crate::ranks::share_of(2, 1) as usize;
    for (processes, threads) in [(8, 128), (128, 8)].into_iter().take(shapes) {
        let (wanted, most) =
            (DESCRIPTORS.0 * threads + DESCRIPTORS.1, crate::ranks::raise_descriptors());
        if most < wanted {
            println!(
                "SKIPPED: {threads} ranks in a process need {wanted} descriptors, and the hard \
                 limit is {most}; raise `ulimit -Hn`"
            );
            continue;
        }
        let started = Instant::now();
        let mut root = Root::start();
        let mut job = Job::start_with(ENTRY, root.id, processes, &threads.to_string(), &[]);
        job.all_say("joined");
        let took = started.elapsed();
        let most: Vec<String> = (0..processes as usize).map(|process| job.hear(process)).collect();
        if let Some(failed) = most.iter().position(String::is_empty) {
            panic!("process {failed} failed: {}", job.errors_until(failed, "never said"));
        }
        let most =
            most.iter().max_by_key(|m| m.split(' ').map(|n| n.parse().unwrap_or(0)).sum::<u64>());
        println!(
            "{} ranks, {processes} processes of {threads} threads: {:.2} s from the start of the \
             first process; \
             connections, messages sent and received of the rank with most: {}",
            u64::from(processes) * threads,
            took.as_secs_f64(),
            most.expect("processes")
        );
        println!("the root: {}", root.last_words());
    }
}

/// A process that is not a rank and makes the unique id, so that the root runs in it.
struct Root {
    id: UniqueId,
    process: Child,
    says: BufReader<ChildStdout>,
}

fn root() {
    maypole::internal::logger::install();
    let id = UniqueId::create().expect("a unique id");
    std::io::stdout().write_all(&[b"id:".as_slice(), &id.to_bytes()].concat()).expect("a pipe");
    println!();
    let _ = std::io::stdin().read(&mut [0]);
}

impl Root {
    fn start() -> Self {
        let mut process = Command::new("/proc/self/exe")
            .args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"])
            .env("MAYPOLE_TEST_SCENE", "root")
            .env("NCCL_DEBUG", "INFO")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut says = BufReader::new(process.stdout.take().expect("a pipe"));
        // The bytes of the id may contain line feeds, so they are found by the text before
        // them.
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"id:") {
            says.read_exact(&mut byte).expect("the root says its id");
            seen.push(byte[0]);
        }
        let mut bytes = [0; 128];
        says.read_exact(&mut bytes).expect("an id");
        Self { id: UniqueId::from_bytes(bytes).expect("an id"), process, says }
    }

    /// The last line that the root logs.
    fn last_words(&mut self) -> String {
        for line in self.says.by_ref().lines() {
            let line = line.expect("text");
            if let Some((_, words)) = line.split_once("NCCL INFO all ") {
                return words.to_owned();
            }
        }
        String::new()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
