//! Tests of the control plane: ranks as processes and as threads that die, stop, come late, or make
//! another call.

use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use crate::ranks::{Job, OVER_TCP, await_word, signal};
use crate::splitmix::Random;
use maypole::config::Config;
use maypole::{Call, Collective, Communicator, DType, DelayReason, Error, RedOp, UniqueId};
use maypole_transport::error::LinkError;

/// The test that a rank process runs.
const ENTRY: &str = "control::rank";

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

fn sum(comm: &mut Communicator, value: i32) -> Result<i32, Error> {
    let mut result = [0];
    comm.all_reduce(&[value], &mut result, RedOp::Sum)?;
    Ok(result[0])
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
    kill_at_random(20, 1);
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

/// Runs `f` for each of `nranks` ranks in a thread, and fails if that takes a minute.
fn as_ranks<T: Send + 'static>(
    nranks: u32,
    config: &Config,
    f: impl Fn(Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let id = UniqueId::create().expect("a unique id");
    let f = Arc::new(f);
    let (done, all) = mpsc::channel();
    for rank in 0..nranks {
        let (f, done, config) = (Arc::clone(&f), done.clone(), config.clone());
        std::thread::spawn(move || {
            let comm = Communicator::builder(&id).rank(rank, nranks).config(config.clone()).build();
            let result = f(comm.unwrap_or_else(|e| panic!("rank {rank}: {e}")));
            done.send((rank, result)).expect("the test waits");
        });
    }
    drop(done);
    let mut results: Vec<(u32, T)> = (0..nranks)
        .map(|_| all.recv_timeout(Duration::from_secs(60)).expect("a rank failed or hangs"))
        .collect();
    results.sort_by_key(|result| result.0);
    results.into_iter().map(|result| result.1).collect()
}

/// Settings with which a rank reports a wait after `report`.
fn reporting_after(report: Duration) -> Config {
    Config { report, ..Config::default() }
}

fn impatient() -> Config {
    reporting_after(Duration::from_millis(150))
}

/// Runs `scene` with longer and longer waits before a report, until it holds: how soon a report
/// arrives depends on what else the machine does.
fn given_time(scene: impl Fn(Duration) -> Result<(), String>) {
    let mut said = String::new();
    for report in [150, 1000, 4000].map(Duration::from_millis) {
        match scene(report) {
            Ok(()) => return,
            Err(error) => said = format!("{said}reports after {report:?}: {error}\n"),
        }
    }
    panic!("{said}");
}

#[test]
fn a_late_rank_is_reported_as_absent_by_all_ranks_that_wait() {
    for algorithm in ["ring", "oneshot", "tree"] {
        given_time(|report| a_late_rank_is_reported(algorithm, report));
    }
}

fn a_late_rank_is_reported(algorithm: &str, report: Duration) -> Result<(), String> {
    let algorithms = (algorithm != "tree").then(|| algorithm.to_owned());
    let config = Config { algorithms, ..reporting_after(report) };
    let reports = as_ranks(5, &config, move |mut comm| {
        sum(&mut comm, 1).expect("a first call");
        if comm.rank() == 3 {
            std::thread::sleep(10 * report);
        }
        sum(&mut comm, 1).expect("the rank comes");
        (comm.rank(), comm.reports())
    });
    for (rank, reports) in reports.into_iter().filter(|(rank, _)| *rank != 3) {
        // On a busy host other ranks may be slow for a moment too, and be reported.
        let named = |r: &maypole::Report| {
            (r.rank, r.culprit(), &r.reason) == (rank, 3, &DelayReason::NotJoined)
                && r.pid == std::process::id()
                && r.call.starts_with("call 2, all_reduce of 1 int32 sum")
                && r.their_call.as_deref() == Some("call 1, all_reduce of 1 int32 sum")
        };
        if !reports.iter().any(named) {
            return Err(format!("{algorithm}, rank {rank}: {reports:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_rank_that_does_not_connect_is_reported_too() {
    given_time(|report| {
        let reports = as_ranks(3, &reporting_after(report), move |mut comm| {
            if comm.rank() == 0 {
                std::thread::sleep(7 * report);
            }
            sum(&mut comm, 1).expect("the rank comes");
            comm.reports()
        });
        let absent = |r: &maypole::Report| r.culprit() == 0 && r.reason == DelayReason::NotJoined;
        let all_tell = reports[1..].iter().all(|reports| reports.iter().any(absent));
        all_tell.then_some(()).ok_or_else(|| format!("{reports:?}"))
    });
}

#[test]
fn a_rank_in_another_communicator_is_reported_as_such() {
    given_time(|report| {
        let other = UniqueId::create().expect("a unique id");
        let config = reporting_after(report);
        let results = as_ranks(2, &config.clone(), move |mut first| {
            let rank = first.rank();
            let second = Communicator::builder(&other).rank(rank, 2).config(config.clone()).build();
            let mut second = second.expect("a second communicator");
            for comm in [&mut first, &mut second] {
                sum(comm, 1).expect("a first call");
            }
            // A deadlock of the program: each rank waits in another communicator.
            let (mine, abort) = if rank == 0 {
                (&mut first, second.abort_handle())
            } else {
                (&mut second, first.abort_handle())
            };
            let breaker = mine.abort_handle();
            let guard = std::thread::spawn(move || {
                std::thread::sleep(6 * report);
                breaker.abort();
            });
            let error = sum(mine, 1).expect_err("nobody comes");
            let reports = mine.reports();
            drop(abort);
            guard.join().expect("a thread");
            (error, reports)
        });
        for (error, reports) in results {
            // The rank that is aborted first leaves both communicators.
            let left = matches!(error, Error::Link(LinkError::PeerLeft { .. }));
            assert!(left || matches!(error, Error::Aborted { .. }), "{error}");
            let elsewhere =
                |r: &maypole::Report| matches!(r.reason, DelayReason::OtherCommunicator { .. });
            if !reports.iter().any(elsewhere) {
                return Err(format!("{reports:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn a_wait_ends_at_the_timeout_and_all_ranks_learn_why() {
    given_time(a_wait_ends_at_the_timeout);
}

/// Rank 2 makes no second call until the others have failed.
fn a_wait_ends_at_the_timeout(report: Duration) -> Result<(), String> {
    let config = Config { timeout: Some(3 * report), ..reporting_after(report) };
    let failed = Barrier::new(4);
    let errors = as_ranks(4, &config, move |mut comm| {
        // On a busy machine the first call may last longer than the timeout.
        let first = sum(&mut comm, 1);
        let is_late = comm.rank() == 2;
        if is_late {
            failed.wait();
        }
        // Rank 2 may find all the messages that it needs for a call.
        let mut results =
            std::iter::once(first).chain(std::iter::repeat_with(|| sum(&mut comm, 1)));
        let error = results.find_map(Result::err).expect("it does not end");
        if !is_late {
            failed.wait();
        }
        error
    });
    for error in &errors {
        let Error::Timeout { rank, peer, .. } = error else { panic!("{error}") };
        assert!(peer != rank, "{error}");
        assert_eq!(error.code() as i32, 8);
    }
    let named = errors.iter().any(|error| matches!(error, Error::Timeout { peer: 2, .. }));
    named.then_some(()).ok_or_else(|| format!("{errors:?}"))
}

/// An abort handle keeps the memory of a communicator, and not its rank.
#[test]
fn a_rank_that_has_left_is_not_waited_for_while_its_abort_handle_lives() {
    for (p2p_disable, shm_disable) in [(false, false), (true, false), (true, true)] {
        let config = Config { p2p_disable, shm_disable, ..Config::default() };
        let (failed, has_failed) = mpsc::channel();
        let has_failed = Mutex::new(has_failed);
        let ends = as_ranks(2, &config, move |mut comm| {
            sum(&mut comm, 1).expect("a first call");
            let handle = comm.abort_handle();
            if comm.rank() == 1 {
                drop(comm);
                has_failed.lock().expect("one rank").recv().expect("the other rank");
                drop(handle);
                return None;
            }
            let error = sum(&mut comm, 1).expect_err("the other rank has left");
            failed.send(()).expect("the other rank");
            Some(error)
        });
        let left = |error: &Error| matches!(error, Error::Link(LinkError::PeerLeft { peer: 1 }));
        assert!(ends[0].as_ref().is_some_and(left), "{ends:?}");
    }
}

#[test]
fn an_abort_reaches_ranks_that_have_no_links() {
    // An abort before that would end the init of a rank that is still in it.
    let all_are_here = Barrier::new(6);
    let errors = as_ranks(6, &Config::default(), move |comm| {
        all_are_here.wait();
        if comm.rank() == 5 {
            comm.abort_handle().abort();
        }
        loop {
            if let Some(error) = comm.async_error() {
                return error;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert!(errors.iter().all(|e| *e == Error::Aborted { by: 5 }), "{errors:?}");
}

/// What is different in the call of one rank.
#[derive(Clone, Copy, Debug)]
enum Deviation {
    Count,
    Type,
    Operator,
    Root,
    Collective,
    /// A call that the others do not make.
    Extra,
    /// A call of no elements, which does not wait.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Plain {
    collective: Collective,
    count: usize,
    dtype: DType,
    op: RedOp,
}

impl Plain {
    fn random(random: &mut Random, nranks: u32) -> Self {
        let root = random.below(u64::from(nranks)) as u32;
        Self {
            collective: random.pick(&[
                Collective::AllReduce,
                Collective::AllGather,
                Collective::ReduceScatter,
                Collective::Broadcast { root },
            ]),
            count: random.pick(&[1, 5, 100, 3000, 70_000]),
            dtype: random.pick(&[DType::Int32, DType::Float32, DType::Uint8]),
            op: random.pick(&[RedOp::Sum, RedOp::Max]),
        }
    }

    fn deviate(self, deviation: Deviation, nranks: u32) -> Self {
        let Self { collective, count, dtype, op } = self;
        match deviation {
            Deviation::Count => Self { count: count + 1, ..self },
            Deviation::Type if dtype == DType::Uint8 => Self { dtype: DType::Int8, ..self },
            Deviation::Type => Self { dtype: DType::Uint32, ..self },
            Deviation::Operator => {
                // All-reduce has an operator.
                let op = if op == RedOp::Sum { RedOp::Max } else { RedOp::Sum };
                Self { collective: Collective::AllReduce, op, ..self }
            }
            Deviation::Root => match collective {
                Collective::Broadcast { root } => {
                    Self { collective: Collective::Broadcast { root: (root + 1) % nranks }, ..self }
                }
                _ => Self { collective: Collective::Broadcast { root: 0 }, ..self },
            },
            Deviation::Collective if collective == Collective::AllReduce => {
                Self { collective: Collective::AllGather, ..self }
            }
            Deviation::Collective => Self { collective: Collective::AllReduce, ..self },
            Deviation::Extra => self,
            Deviation::Nothing => Self { count: 0, ..self },
        }
    }

    fn run(self, comm: &mut Communicator, memory: &Memory) -> Result<(), Error> {
        let call = Call {
            collective: self.collective,
            send: memory.send.as_ptr().cast(),
            recv: memory.recv.as_ptr().cast_mut().cast(),
            count: self.count,
            dtype: self.dtype,
            reduction: self.op.into(),
        };
        // SAFETY: both buffers are larger than any call of this test on so few ranks needs, and
        // outlive the communicator.
        unsafe { comm.run(&call) }
    }
}

/// The buffers of a rank. They outlive all ranks of the test, because a peer may read lent memory
/// until it has failed too.
struct Memory {
    send: Vec<u64>,
    recv: Vec<u64>,
}

fn mismatches(cases: u64, salt: u64) {
    let mut random = Random(salt);
    for case in 0..cases {
        let nranks = 2 + random.below(4) as u32;
        let deviant = random.below(u64::from(nranks)) as u32;
        let deviation = random.pick(&[
            Deviation::Count,
            Deviation::Type,
            Deviation::Operator,
            Deviation::Root,
            Deviation::Collective,
            Deviation::Extra,
            Deviation::Nothing,
        ]);
        let plain = Plain::random(&mut random, nranks);
        // A collective with an operator, so that operators can differ.
        let plain = match deviation {
            Deviation::Operator => Plain { collective: Collective::AllReduce, ..plain },
            _ => plain,
        };
        let config = Config { p2p_disable: random.below(2) == 0, ..impatient() };
        let warm = random.below(3);
        let kept: Arc<Mutex<Vec<Arc<Memory>>>> = Arc::default();
        let keep = kept.clone();
        let errors = as_ranks(nranks, &config, move |mut comm| {
            let memory = Arc::new(Memory { send: vec![0; 200_000], recv: vec![0; 200_000] });
            keep.lock().expect("a lock").push(memory.clone());
            let deviates = comm.rank() == deviant;
            for _ in 0..warm {
                sum(&mut comm, 1)?;
            }
            let mine = if deviates { plain.deviate(deviation, nranks) } else { plain };
            if deviates && matches!(deviation, Deviation::Extra) {
                let extra = Plain { count: plain.count + 3, ..plain };
                extra.run(&mut comm, &memory)?;
            }
            mine.run(&mut comm, &memory)?;
            // A rank that has not failed yet will fail in one of these calls.
            for _ in 0..100_000 {
                sum(&mut comm, 1)?;
            }
            Ok::<(), Error>(())
        });
        let story = format!("case {case}: {plain:?}, rank {deviant} of {nranks}: {deviation:?}");
        for (rank, error) in errors.iter().enumerate() {
            let Err(Error::Mismatch { ranks, what }) = error else {
                panic!("{story}: rank {rank}: {error:?}");
            };
            let both = ranks.iter().all(|r| what.contains(&format!("rank {r}")));
            assert!(ranks.contains(&deviant) && both, "{story}: rank {rank}: {what}");
            assert!(what.starts_with("in call "), "{story}: rank {rank}: {what}");
        }
    }
}

#[test]
fn ranks_that_make_different_calls_learn_which() {
    let threads = [1, 2, 3, 4].map(|salt| std::thread::spawn(move || mismatches(25, salt)));
    for thread in threads {
        thread.join().expect("all cases end well");
    }
}

#[test]
#[ignore = "takes minutes"]
fn ranks_that_make_different_calls_learn_which_in_many_cases() {
    mismatches(500, 99);
}
