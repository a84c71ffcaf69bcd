//! Tests of several communicators of the same ranks: each in a thread of its own, in turn from one
//! thread, and left while a peer cannot answer.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Duration;

use crate::ranks::{Invitation, Job, OVER_TCP, share_of};
use maypole::Options;
use maypole::config::Config;
use maypole::{Communicator, RedOp, UniqueId};

/// The test that a rank process runs.
const ENTRY: &str = "communicators::rank";

const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    if std::env::var_os("MAYPOLE_SECRET_FILE").is_some() {
        return of_one_file();
    }
    let Some((scene, comm)) = crate::ranks::enter() else { return };
    match scene.as_str() {
        "threads" => threads(comm),
        "turns" => turns(comm),
        "leave" => leave(comm),
        other => panic!("no scene {other}"),
    }
}

/// Makes three communicators from one address and one file, which live at the same time, and parts
/// of them.
fn of_one_file() {
    let Invitation { rank, nranks, .. } = crate::ranks::invitation().expect("a rank process");
    let mut comms: Vec<Communicator> = Vec::new();
    for number in 0..3 {
        let id = UniqueId::create().unwrap_or_else(|e| panic!("id {number}: {e}"));
        let comm = Communicator::new(&id, rank, nranks);
        comms.push(comm.unwrap_or_else(|e| panic!("communicator {number}: {e}")));
        (0..4).for_each(|call| comms.iter_mut().for_each(|comm| sum(comm, call)));
    }
    let mut parts: Vec<Communicator> = comms.iter_mut().map(|comm| another(comm, 2)).collect();
    (0..4).for_each(|call| parts.iter_mut().chain(&mut comms).for_each(|comm| sum(comm, call)));
    println!("say:done");
}

/// Makes a communicator of the same ranks in another order.
fn another(comm: &mut Communicator, salt: i32) -> Communicator {
    let key = (comm.rank() as i32 * 5 + salt) % comm.nranks() as i32;
    comm.split(Some(0), key).expect("a split").expect("all are in it")
}

/// Makes a call and checks its result.
fn sum(comm: &mut Communicator, call: usize) {
    let count = [1, 900, 20_000, 150_000][call % 4];
    let (rank, n, call) = (comm.rank(), comm.nranks(), call as u32);
    let send: Vec<u32> = (0..count).map(|i| i * 7 + call + rank).collect();
    let mut recv = vec![0; send.len()];
    comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("call {call}: {e}"));
    let right = (0..count).map(|i| n * (i * 7 + call) + n * (n - 1) / 2);
    assert!(recv.into_iter().eq(right), "call {call} is wrong");
}

/// Uses three communicators, each in a thread of its own, independently of each other.
fn threads(mut first: Communicator) {
    let others = [another(&mut first, 1), another(&mut first, 3)];
    let threads: Vec<_> = std::iter::once(first)
        .chain(others)
        .enumerate()
        .map(|(which, mut comm)| {
            std::thread::spawn(move || {
                let calls = share_of(100 + 20 * which as u32, 16 + 4 * which as u32) as usize;
                (0..calls).for_each(|call| sum(&mut comm, call + which));
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("all calls are right"));
    println!("say:done");
}

/// Uses two communicators in turn, in the same order on all ranks.
fn turns(mut first: Communicator) {
    let mut second = another(&mut first, 2);
    for call in 0..share_of(150, 24) as usize {
        sum(&mut first, call);
        // Not strictly alternating.
        if call % 3 != 0 {
            sum(&mut second, call + 1);
        }
    }
    println!("say:done");
}

/// Leaves communicators when the test says so, whatever the peers do then. Some have links, some
/// have none.
fn leave(mut first: Communicator) {
    let mut second = another(&mut first, 1);
    let third = another(&mut first, 2);
    (0..4).for_each(|call| sum(&mut first, call));
    (0..4).for_each(|call| sum(&mut second, call));
    println!("say:ready");
    if first.rank() != 1 {
        // Wait until the test has stopped or killed rank 1.
        std::thread::sleep(Duration::from_millis(400));
    } else {
        std::thread::sleep(Duration::from_secs(3600));
    }
    drop(second);
    drop((third, first));
    println!("say:gone");
}

fn run(scene: &str, nranks: u32, environment: &[(&str, &str)]) {
    let mut job = Job::start(ENTRY, nranks, scene, environment);
    job.all_say("done");
    (0..nranks as usize).for_each(|rank| job.ends_well(rank));
}

#[test]
fn communicators_of_one_file_live_at_the_same_time() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "a phrase that all ranks know\n").expect("a file");
    std::fs::set_permissions(file.path(), Permissions::from_mode(0o600)).expect("a file");
    let path = file.path().to_str().expect("text");
    for environment in [&[][..], &OVER_TCP] {
        // Free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port");
        let address = port.to_string();
        let own = [("NCCL_COMM_ID", &address[..]), ("MAYPOLE_SECRET_FILE", path)];
        let mut job = Job::start(ENTRY, 3, "file", &[environment, &own].concat());
        job.all_say("done");
        (0..3).for_each(|rank| job.ends_well(rank));
    }
}

#[test]
fn three_communicators_in_three_threads() {
    run("threads", 4, &[]);
    run("threads", 3, &OVER_TCP);
}

#[test]
fn two_communicators_by_turns() {
    run("turns", 4, &[]);
    run("turns", 3, &OVER_TCP);
}

/// If a rank waited for rank 1, the watchdog of the job would kill it, and it would not print
/// `gone`.
fn left_behind(signal: libc::c_int, environment: &[(&str, &str)]) {
    let mut job = Job::start(ENTRY, 4, "leave", environment);
    job.all_say("ready");
    job.signal(1, signal);
    for rank in [0, 2, 3] {
        assert_eq!(job.hear(rank), "gone", "rank {rank}");
        job.ends_well(rank);
    }
}

#[test]
fn leaving_does_not_wait_for_a_rank_that_is_stopped() {
    left_behind(libc::SIGSTOP, &[]);
    left_behind(libc::SIGSTOP, &OVER_TCP);
}

#[test]
fn leaving_does_not_wait_for_a_rank_that_is_dead() {
    left_behind(libc::SIGKILL, &[]);
    left_behind(libc::SIGKILL, &OVER_TCP);
}

/// Three ranks in one process with three communicators each, each communicator of each rank in a
/// thread.
#[test]
fn ranks_as_threads_have_three_communicators_each() {
    for config in [
        Config::default(),
        Config { p2p_disable: true, ..Config::default() },
        Config { p2p_disable: true, shm_disable: true, ..Config::default() },
    ] {
        let (say, hear) = mpsc::channel();
        for which in 0..3 {
            let id = UniqueId::create().expect("a unique id");
            for rank in 0..3 {
                let (say, config) = (say.clone(), config.clone());
                std::thread::spawn(move || {
                    let options = Options::default();
                    let comm = Communicator::builder(&id)
                        .rank(rank, 3)
                        .config(config.clone())
                        .options(options.clone())
                        .build();
                    let mut comm = comm.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
                    let calls = share_of(60, 12) as usize;
                    (0..calls).for_each(|call| sum(&mut comm, call + which));
                    say.send(()).expect("the test listens");
                });
            }
        }
        drop(say);
        for _ in 0..9 {
            hear.recv_timeout(PATIENCE).expect("a rank failed or hangs");
        }
    }
}
