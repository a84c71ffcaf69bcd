//! Tests of a whole job to which strangers connect: at every port at which its processes listen,
//! while ranks call collectives, split and shrink, and while they wait for a late rank. The results
//! are right, no stranger is accepted, and nothing is left behind.
//!
//! What a listener does with a single stranger is tested in the module of that listener. All
//! connections stay on this host.

use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use maypole::Options;
use maypole::{Communicator, RedOp, UniqueId};

use crate::intruders::{RecordingProxy, StrangerAttack};
use crate::ranks::{Job, OVER_TCP};

/// The test that a rank process runs.
const ENTRY: &str = "strangers::rank";

const NRANKS: u32 = 4;
/// The variable with the path of a file; the ranks go on when the file exists.
const SIGN: &str = "MAYPOLE_TEST_SIGN";
/// The variable with the number of descriptors that a rank may have.
const DESCRIPTORS: &str = "MAYPOLE_TEST_DESCRIPTORS";
/// The longest wait for any event.
const PATIENCE: Duration = Duration::from_secs(120);
/// Not a test: the code of a rank process.
#[test]
#[ignore = "run by the other tests, as a rank"]
fn rank() {
    let Some(invitation) = crate::ranks::invitation() else { return };
    if let Ok(most) = std::env::var(DESCRIPTORS) {
        let most = most.parse().expect("a number");
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` is alive and of the type that the call reads.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    }
    let before = descriptors();
    if invitation.scene == "late" && invitation.rank == NRANKS - 1 {
        wait_until("the sign", || sign().exists());
    }
    let comm = Communicator::new(&invitation.id, invitation.rank, invitation.nranks);
    let mut comm = comm.unwrap_or_else(|e| panic!("init: {e}"));
    (0..20).for_each(|round| check_sums(&mut comm, round));
    if invitation.scene == "working" {
        work(&mut comm);
    }
    drop(comm);
    wait_until("the descriptors' end", || descriptors() <= before);
    println!("say:nothing is left");
}

/// Makes calls, and makes and ends communicators, until the file exists; then goes on with the
/// communicator of a shrink.
fn work(comm: &mut Communicator) {
    println!("say:ready");
    let before = descriptors();
    let mut rounds = 0;
    loop {
        check_sums(comm, rounds);
        let part = comm.split(Some(comm.rank() % 2), 0).expect("a split");
        check_sums(&mut part.expect("a part"), rounds);
        rounds += 1;
        let mut over = [0];
        let seen = [i32::from(comm.rank() == 0 && sign().exists())];
        comm.all_reduce(&seen, &mut over, RedOp::Max).unwrap_or_else(|e| panic!("{e}"));
        if over == [1] {
            break;
        }
    }
    if comm.rank() != 2 {
        check_sums(&mut comm.shrink(&[2]).expect("the others"), 0);
    }
    println!("say:{rounds}");
    wait_until("the strangers' end", || descriptors() <= before);
}

fn check_sums(comm: &mut Communicator, salt: i32) {
    let (rank, n) = (comm.rank() as i32, comm.nranks() as i32);
    for count in [1, 1000, 100_000] {
        let send: Vec<i32> = (0..count).map(|i| i * 7 + salt + rank).collect();
        let mut recv = vec![0; send.len()];
        comm.all_reduce(&send, &mut recv, RedOp::Sum).unwrap_or_else(|e| panic!("{e}"));
        let right = (0..count).map(|i| n * (i * 7 + salt) + n * (n - 1) / 2);
        assert!(recv.into_iter().eq(right), "a sum of {count} elements is wrong");
    }
}

fn sign() -> PathBuf {
    std::env::var_os(SIGN).expect("the sign's path").into()
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        if Instant::now() >= until {
            for fd in std::fs::read_dir("/proc/self/fd").expect("/proc").flatten() {
                println!("{:?} {:?}", fd.file_name(), std::fs::read_link(fd.path()));
            }
            panic!("{what} does not come");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

#[test]
fn a_job_at_work_over_shared_memory() {
    at_work(&[], 2500);
}

#[test]
fn a_job_at_work_over_tcp() {
    at_work(&OVER_TCP, 4500);
}

fn at_work(environment: &[(&str, &str)], strangers: usize) {
    let _alone = crate::alone();
    let (before, folder) = (descriptors(), tempfile::tempdir().expect("a folder"));
    let sign = folder.path().join("sign");
    let environment = [environment, &[(SIGN, sign.to_str().expect("text"))]].concat();
    let proxy = RecordingProxy::open();
    let mut job = Job::start_with(ENTRY, proxy.id(), NRANKS, "working", &environment);
    job.all_say("ready");
    assert_eq!(proxy.handshakes(), NRANKS as usize);
    let attack = StrangerAttack::start(&job.pids(), proxy);
    attack.wait_for(strangers);
    std::fs::write(&sign, "").expect("a file");
    let rounds: Vec<i32> =
        (0..NRANKS as usize).map(|rank| job.hear(rank).parse().expect("a shrink")).collect();
    println!("at work, {} rounds, {environment:?}: {}", rounds[0], attack.stop());
    job.all_say("nothing is left");
    (0..NRANKS as usize).for_each(|rank| job.ends_well(rank));
    drop(job);
    wait_until("the end of all of it", || descriptors() <= before);
}

#[test]
fn a_job_that_waits_for_a_rank() {
    // With few descriptors, many more strangers hold connections open than there is room for.
    let few = [(DESCRIPTORS, "110")];
    for (environment, strangers) in [(&[][..], 1500), (&OVER_TCP, 1500), (&few, 1500)] {
        waiting(environment, strangers);
    }
}

fn waiting(environment: &[(&str, &str)], strangers: usize) {
    let _alone = crate::alone();
    let (before, folder) = (descriptors(), tempfile::tempdir().expect("a folder"));
    let sign = folder.path().join("sign");
    let environment = [environment, &[(SIGN, sign.to_str().expect("text"))]].concat();
    let proxy = RecordingProxy::open();
    let imposter = proxy.id_with_another_secret();
    let mut job = Job::start_with(ENTRY, proxy.id(), NRANKS, "late", &environment);
    wait_until("three ranks", || proxy.handshakes() == NRANKS as usize - 1);
    let attack = StrangerAttack::start(&job.pids(), proxy);
    attack.wait_for(strangers);
    // At a rejoin listener another root may follow, so the rank tries for a while.
    let options = Options { timeout: Duration::from_secs(1), ..Options::default() };
    let imposed = Communicator::builder(&imposter).rank(3, NRANKS).options(options.clone()).build();
    let error = imposed.err().expect("it knows no secret");
    assert!(error.to_string().contains("does not know the secret"), "{error}");
    std::fs::write(&sign, "").expect("a file");
    job.all_say("nothing is left");
    println!("in init, {environment:?}: {}", attack.stop());
    (0..NRANKS as usize).for_each(|rank| job.ends_well(rank));
    drop(job);
    wait_until("the end of all of it", || descriptors() <= before);
}

#[test]
fn another_user_is_told_nothing_of_communicators() {
    let _alone = crate::alone();
    // SAFETY: the call has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return println!("SKIPPED: only root can become another user");
    }
    let id = UniqueId::create().expect("an id");
    let other = std::thread::spawn(move || Communicator::new(&id, 1, 2));
    let _comm = Communicator::new(&id, 0, 2).unwrap_or_else(|e| panic!("init: {e}"));
    let _other = other.join().expect("a rank").unwrap_or_else(|e| panic!("init: {e}"));
    let own = format!("@maypole/{}/", std::process::id());
    let find = || {
        let table = std::fs::read_to_string("/proc/net/unix").expect("a file of /proc");
        let mut words = table.split_whitespace();
        words.find(|word| word.starts_with(&own)).map(|word| word[1..].to_owned())
    };
    // The service thread opens it.
    wait_until("the status server", || find().is_some());
    let name = &find().expect("it is there");
    let told = |user: u32| {
        // SAFETY: the child makes a connection and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: the calls take numbers only.
            unsafe { libc::setresuid(user, user, user) };
            let address = SocketAddr::from_abstract_name(name).expect("a name");
            let mut stream = UnixStream::connect_addr(&address).expect("a connection");
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            // SAFETY: a call without conditions.
            unsafe { libc::_exit(answer.len().min(255) as i32) };
        }
        let mut status = 0;
        // SAFETY: `status` is alive.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        libc::WEXITSTATUS(status)
    };
    assert_eq!(told(65534), 0, "another user was told of communicators");
    assert!(told(0) > 0, "the same user was told nothing");
}
