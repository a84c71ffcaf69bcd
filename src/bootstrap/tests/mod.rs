//! Tests in which ranks join as threads, over sockets, while strangers connect too.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use maypole_control::frame::{ControlFrame, RankRegistration};
use maypole_control::listener_addresses::ListenerAddresses;
use maypole_control::root_share::RootShare;
use maypole_control::verdict::Verdict;
use maypole_transport::noise::{self, Binding, KEY_BYTES, Key, Purpose};

use super::dial::{DialOutcome, Dialer};
use super::frame_stream::{FrameStream, SecureStream};
use super::*;

mod on_path;
mod several;

type JoinResult = Result<Joined, BootstrapError>;

/// Far longer than anything takes, also on a machine that runs other programs meanwhile.
const LONG: Duration = Duration::from_secs(240);

fn options(timeout: Duration) -> Options {
    Options { timeout, notice: Duration::from_millis(100), ..Options::default() }
}

/// Runs `attempt` with longer and longer timeouts until it holds: a rank that is there may need
/// more than a short one on a busy machine.
fn given_time(attempt: impl Fn(Duration) -> Result<(), String>) {
    let mut said = String::new();
    for timeout in [700, 5000, 15_000].map(Duration::from_millis) {
        match attempt(timeout) {
            Ok(()) => return,
            Err(why) => said = format!("{said}within {timeout:?}: {why}\n"),
        }
    }
    panic!("{said}");
}

/// Whether all outcomes are that of `nranks` ranks these are missing.
fn all_miss(
    missing: &[u32],
    nranks: u32,
    outcomes: &[Result<Joined, BootstrapError>],
) -> Result<(), String> {
    let expected = RankSet::new(missing.to_vec());
    for outcome in outcomes {
        match error(outcome) {
            BootstrapError::MissingRanks { ranks, nranks: n, .. } if *n == nranks => {
                if *ranks != expected {
                    return Err(format!("{missing:?} missing, told: {}", error(outcome)));
                }
            }
            other => panic!("{missing:?} missing, but: {other}"),
        }
    }
    Ok(())
}

/// Runs `work`, and fails the test if it does not end.
fn with_watchdog<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    crate::logger::install();
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(Duration::from_secs(300)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the worker sends before it ends"),
        },
    }
}

fn rank_info(rank: u32) -> Vec<u8> {
    vec![rank as u8; rank as usize % 50]
}

/// Joins each of `ranks` in a thread of its own, and returns the results in the order of `ranks`.
fn join_all(
    id: UniqueId,
    ranks: impl IntoIterator<Item = u32>,
    nranks: u32,
    timeout: Duration,
) -> Vec<JoinResult> {
    join_each(ranks, |rank| {
        move || join_with(&id, rank, nranks, &rank_info(rank), &options(timeout))
    })
}

/// Runs the function that `join` returns for each of `ranks` in a thread of its own.
fn join_each<F: FnOnce() -> JoinResult + Send + 'static>(
    ranks: impl IntoIterator<Item = u32>,
    join: impl Fn(u32) -> F,
) -> Vec<JoinResult> {
    let spawn = |rank| thread::Builder::new().stack_size(256 << 10).spawn(join(rank)).unwrap();
    let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn create() -> UniqueId {
    UniqueId::create_with(&options(LONG)).unwrap()
}

fn check(outcomes: Vec<JoinResult>) -> Vec<Joined> {
    let joined: Vec<Joined> = outcomes.into_iter().map(|outcome| outcome.unwrap()).collect();
    let key = *joined[0].derive("test").bytes();
    for rank in &joined {
        assert_eq!(rank.infos.len(), rank.nranks as usize);
        for (of, bytes) in rank.infos.iter().enumerate() {
            assert_eq!(*bytes, rank_info(of as u32));
        }
        assert_eq!(*rank.derive("test").bytes(), key);
        assert_ne!(*rank.derive("other").bytes(), key);
    }
    joined
}

fn root_addresses(id: &UniqueId) -> Vec<SocketAddr> {
    id.contents().unwrap().root.addresses
}

fn error(outcome: &JoinResult) -> &BootstrapError {
    outcome.as_ref().err().expect("it should fail")
}

#[test]
fn every_rank_gets_all_rank_infos() {
    with_watchdog(|| {
        for nranks in [1, 2, 3, 7, 16, 64] {
            let id = create();
            check(join_all(id, 0..nranks, nranks, LONG));
            // The root has ended: its port is closed.
            for address in root_addresses(&id) {
                let until = Instant::now() + LONG;
                while TcpStream::connect(address).is_ok() {
                    assert!(Instant::now() < until, "the root of {nranks} ranks does not end");
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
}

/// To run it: `cargo test --release -p maypole many_ranks -- --ignored --nocapture`, with `ulimit
/// -n` of 8192 or more.
#[test]
#[ignore = "takes 512 threads and thousands of descriptors"]
fn many_ranks() {
    let started = Instant::now();
    let joined = check(with_watchdog(|| join_all(create(), 0..512, 512, LONG)));
    println!("{} ranks joined in {:?}", joined.len(), started.elapsed());
}

#[test]
fn exchanges_follow_the_join() {
    with_watchdog(|| {
        let joined = check(join_all(create(), 0..7, 7, LONG));
        let threads: Vec<_> = joined
            .into_iter()
            .map(|mut joined| {
                thread::spawn(move || {
                    for round in 0..50_u32 {
                        let deadline = Instant::now() + LONG;
                        let mine = (joined.rank * round).to_le_bytes().repeat(joined.rank as usize);
                        let all = joined.control.all_gather(&mine, deadline).unwrap();
                        for (rank, bytes) in (0..).zip(&all) {
                            assert_eq!(*bytes, (rank * round).to_le_bytes().repeat(rank as usize));
                        }
                        joined.control.barrier(deadline).unwrap();
                    }
                    // The largest that fits, through sockets that do not take it at once.
                    let mine = vec![joined.rank as u8; MOST_ITEM];
                    let all = joined.control.all_gather(&mine, Instant::now() + LONG).unwrap();
                    assert!((0..).zip(&all).all(|(rank, bytes)| *bytes == vec![rank; MOST_ITEM]));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn the_bootstrap_waits_for_late_ranks() {
    with_watchdog(|| {
        let id = create();
        let early = thread::spawn(move || join_all(id, [0, 2, 3, 5, 6], 7, LONG));
        let mut ghost = register(&id, 4, 7);
        wait_until_missing(&mut ghost, &[1]);
        leave(ghost);
        let mut outcomes = join_all(id, [1, 4], 7, LONG);
        outcomes.extend(early.join().unwrap());
        check(outcomes);
    });
}

#[test]
fn all_ranks_learn_which_ranks_are_missing() {
    with_watchdog(|| {
        // A leaf, an inner rank, rank 0, and several ranks.
        for missing in [vec![6], vec![1], vec![0], vec![1, 5, 6]] {
            let present = (0..7).filter(|rank| !missing.contains(rank));
            given_time(|timeout| {
                all_miss(&missing, 7, &join_all(create(), present.clone(), 7, timeout))
            });
        }
    });
}

#[test]
fn a_second_process_with_the_same_rank_is_refused_and_the_others_go_on() {
    with_watchdog(|| {
        let id = create();
        let first = thread::spawn(move || join_all(id, [0, 1], 4, LONG));
        let mut ghost = register(&id, 3, 4);
        wait_until_missing(&mut ghost, &[2]);
        let second = join_all(id, [1], 4, LONG);
        let BootstrapError::DuplicateRank { rank: 1, host, pid } = error(&second[0]) else {
            panic!("{}", error(&second[0]));
        };
        assert_eq!((host.as_str(), *pid), (crate::logger::host_name(), std::process::id()));
        leave(ghost);
        let mut outcomes = join_all(id, [2, 3], 4, LONG);
        outcomes.extend(first.join().unwrap());
        check(outcomes);
    });
}

#[test]
fn another_number_of_ranks_is_refused_and_the_others_go_on() {
    with_watchdog(|| {
        let id = create();
        let first = thread::spawn(move || join_all(id, [0], 3, LONG));
        let mut ghost = register(&id, 2, 3);
        wait_until_missing(&mut ghost, &[1]);
        let other = join_all(id, [1], 4, LONG);
        let expected = BootstrapError::DifferentRankCount { rank: 1, ours: 4, theirs: 3 };
        assert_eq!(*error(&other[0]), expected);
        leave(ghost);
        let mut outcomes = join_all(id, [1, 2], 3, LONG);
        outcomes.extend(first.join().unwrap());
        check(outcomes);
    });
}

#[test]
fn a_rank_that_went_away_while_it_waited_may_come_again() {
    with_watchdog(|| {
        let id = create();
        let mut ghost = register(&id, 1, 4);
        let first = thread::spawn(move || join_all(id, [0, 2], 4, LONG));
        wait_until_missing(&mut ghost, &[3]);
        leave(ghost);
        let mut outcomes = join_all(id, [1, 3], 4, LONG);
        outcomes.extend(first.join().unwrap());
        check(outcomes);
    });
}

#[test]
fn the_id_of_another_job_at_the_same_address_is_refused() {
    with_watchdog(|| {
        let (ours, theirs) = (create(), create());
        // The secret of one job with the addresses of another, as if the other job had got the
        // port.
        let mut bytes = ours.to_bytes();
        bytes[9..41].copy_from_slice(&theirs.to_bytes()[9..41]);
        let sum = id::tests::checksum_of(&bytes);
        bytes[120..].copy_from_slice(&sum);
        let mixed = UniqueId::from_bytes(bytes).unwrap();
        for outcome in join_all(mixed, [0, 1], 2, LONG) {
            let BootstrapError::WrongId { address, .. } = error(&outcome) else {
                panic!("{}", error(&outcome));
            };
            assert!(root_addresses(&ours).contains(address));
        }
        check(join_all(ours, 0..2, 2, LONG));
    });
}

#[test]
fn communicators_can_follow_each_other_at_a_fixed_address() {
    with_watchdog(|| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        for _ in 0..5 {
            check(join_all(id::tests::fixed_at(port), 0..5, 5, LONG));
        }
    });
}

#[test]
fn mistakes_of_the_caller_are_refused() {
    let id = create();
    let fails = |rank, nranks, info: &[u8]| {
        join_with(&id, rank, nranks, info, &options(LONG)).err().expect("it should fail")
    };
    assert_eq!(fails(2, 2, b""), BootstrapError::NoSuchRank { rank: 2, nranks: 2 });
    assert_eq!(fails(0, 0, b""), BootstrapError::NoSuchRank { rank: 0, nranks: 0 });
    assert!(matches!(fails(0, 2, &[0; MOST_INFO_BYTES + 1]), BootstrapError::TooLong { .. }));
    let garbage = UniqueId::from_bytes([7; UNIQUE_ID_BYTES]);
    assert!(matches!(garbage, Err(BootstrapError::NotAnId { .. })));
}

#[test]
fn a_root_that_is_gone_is_named() {
    with_watchdog(|| {
        let id = create();
        check(join_all(id, 0..1, 1, LONG));
        // The system refuses the connections, so the timeout of ten minutes does not count, which
        // is longer than the watchdog waits.
        let outcomes = join_all(id, [0], 2, Duration::from_secs(600));
        let BootstrapError::RootUnreachable { addresses, last, .. } = error(&outcomes[0]) else {
            panic!("{}", error(&outcomes[0]));
        };
        assert!(last.contains("refused"), "{last}");
        assert!(addresses.contains(&root_addresses(&id)[0].to_string()));
    });
}

#[test]
fn all_ranks_learn_which_rank_was_lost() {
    with_watchdog(|| {
        let mut joined = check(join_all(create(), 0..7, 7, LONG));
        // A leaf whose loss only rank 2 notices.
        drop(joined.remove(5));
        let threads: Vec<_> = joined
            .into_iter()
            .map(|mut joined| {
                thread::spawn(move || {
                    let deadline = Instant::now() + LONG;
                    let first = joined.control.barrier(deadline).unwrap_err();
                    // The tree stays failed, and does not wait again.
                    assert_eq!(joined.control.barrier(deadline).unwrap_err(), first);
                    first
                })
            })
            .collect();
        for thread in threads {
            let expected = BootstrapError::PeerLost { rank: 5, seen_by: 2 };
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn all_ranks_learn_which_rank_does_not_take_part() {
    with_watchdog(|| {
        let mut joined = check(join_all(create(), 0..4, 4, LONG));
        let idle = joined.pop();
        let threads: Vec<_> = joined
            .into_iter()
            .zip([LONG, Duration::from_millis(300), LONG])
            .map(|(mut joined, patience)| {
                thread::spawn(move || {
                    joined.control.barrier(Instant::now() + patience).unwrap_err()
                })
            })
            .collect();
        for thread in threads {
            let error = thread.join().unwrap();
            assert!(
                matches!(error, BootstrapError::TimedOut { rank: 1, waiting_for: 3, .. }),
                "{error}"
            );
        }
        drop(idle);
    });
}

#[test]
fn strangers_do_not_disturb_the_root() {
    with_watchdog(|| {
        let id = create();
        let addresses = root_addresses(&id);
        let strangers: Vec<TcpStream> =
            addresses.iter().flat_map(|&at| connect_strangers(at)).collect();
        check(join_all(id, 0..7, 7, LONG));
        drop(strangers);
    });
}

#[test]
fn strangers_do_not_disturb_the_ranks() {
    with_watchdog(|| {
        let id = create();
        let early = thread::spawn(move || join_all(id, [0, 1], 4, LONG));
        // A registration as rank 2 gets the address of rank 0, and one as rank 3 that of rank 1.
        let mut strangers = Vec::new();
        for rank in [2, 3] {
            let mut connection = register(&id, rank, 4);
            let listener = loop {
                poll::wait(&mut [connection.poll_fd()], Instant::now() + LONG);
                connection.fill();
                match connection.next().unwrap() {
                    Some(ControlFrame::Parent(listener)) => break listener,
                    Some(ControlFrame::Missing { .. }) | None => {}
                    Some(other) => panic!("{other:?}"),
                }
            };
            strangers.extend(listener.addresses.iter().flat_map(|&at| connect_strangers(at)));
            leave(connection);
        }
        let mut outcomes = join_all(id, [2, 3], 4, LONG);
        outcomes.extend(early.join().unwrap());
        check(outcomes);
    });
}

#[test]
fn a_rank_that_breaks_the_protocol_is_dropped_and_the_others_go_on() {
    with_watchdog(|| {
        let id = create();
        let mut dishonest = register(&id, 1, 2);
        dishonest.send(&ControlFrame::Up { sequence: 0, items: vec![1; 4000] });
        wait_until_ended(&mut dishonest);
        check(join_all(id, 0..2, 2, LONG));
    });
}

#[test]
fn a_root_whose_ranks_all_gave_up_before_they_registered_ends() {
    with_watchdog(|| {
        let id = create();
        let contents = id.contents().unwrap();
        for rank in [0, 1, 2] {
            let binding =
                Binding { purpose: Purpose::Root, from: rank, to: 0, nranks: 3, stream: 0 };
            let stream = dial(contents.secret.clone(), binding, &contents.root);
            let mut connection = FrameStream::new(stream, 0);
            connection.send(&ControlFrame::Verdict(Verdict::Aborted { by: rank }));
            connection.shut_down_sending();
        }
        let until = Instant::now() + LONG;
        for address in root_addresses(&id) {
            while TcpStream::connect(address).is_ok() {
                assert!(Instant::now() < until, "the root does not end");
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

/// The connection of a rank that registers and does nothing more.
fn register(id: &UniqueId, rank: u32, nranks: u32) -> FrameStream {
    register_at(id, rank, nranks, RootShare { index: 0, count: 1, fingerprint: 0 })
}

/// The same at one of several roots.
fn register_at(id: &UniqueId, rank: u32, nranks: u32, share: RootShare) -> FrameStream {
    let contents = id.contents().unwrap();
    let binding = Binding { purpose: Purpose::Root, from: rank, to: 0, nranks, stream: 0 };
    let mut connection = FrameStream::new(dial(contents.secret, binding, &contents.root), 1 << 20);
    connection.send(&ControlFrame::Register(RankRegistration {
        host: String::from("ghost"),
        pid: 1,
        timeout: LONG,
        listener: ListenerAddresses { host_tag: 0, addresses: Vec::new() },
        share,
    }));
    connection
}

/// Waits until the root tells a registered rank that only these ranks are missing: then all others
/// have registered.
fn wait_until_missing(registered: &mut FrameStream, missing: &[u32]) {
    let until = Instant::now() + LONG;
    let expected = RankSet::new(missing.to_vec());
    loop {
        while let Some(frame) = registered.next().unwrap() {
            if matches!(frame, ControlFrame::Missing { ranks, .. } if ranks == expected) {
                return;
            }
        }
        assert!(Instant::now() < until, "the root never says that only {missing:?} are missing");
        poll::wait(&mut [registered.poll_fd()], until);
        registered.fill();
    }
}

/// Ends the connection of a registered rank, as if its process had ended. When this returns, the
/// root knows of it.
fn leave(mut registered: FrameStream) {
    registered.shut_down_sending();
    wait_until_ended(&mut registered);
}

/// Waits until the root has closed this connection.
fn wait_until_ended(connection: &mut FrameStream) {
    let until = Instant::now() + LONG;
    while !connection.has_ended() {
        assert!(Instant::now() < until, "the connection stays open");
        poll::wait(&mut [connection.poll_fd()], until);
        connection.fill();
    }
}

fn dial(secret: Key, binding: Binding, listener: &ListenerAddresses) -> SecureStream {
    let mut dial = Dialer::new(secret, binding, listener_address::reachable_here(listener));
    let until = Instant::now() + LONG;
    loop {
        match dial.advance().unwrap() {
            DialOutcome::Connected(stream) => return stream,
            DialOutcome::NotYet => {
                assert!(Instant::now() < until, "{}", dial.last_error());
                poll::wait(&mut [dial.poll_fd()], until.min(dial.wake()));
            }
            DialOutcome::WrongId(address) => panic!("{address}"),
        }
    }
}

/// Strangers of every kind connect to this address. The connections that stay open are returned.
fn connect_strangers(address: SocketAddr) -> Vec<TcpStream> {
    let mut strangers = Vec::new();
    let connect = || TcpStream::connect(address).unwrap();
    // Many that send nothing.
    strangers.extend((0..300).map(|_| connect()));
    // One that sends random bytes, more than a first message.
    let mut noisy = connect();
    let _ = noisy.write_all(&[0xa5; 5000]);
    strangers.push(noisy);
    // Half a first message, then silence; and half of one, then the end.
    let binding = Binding { purpose: Purpose::Root, from: 1, to: 0, nranks: 7, stream: 0 };
    let (_, first) = noise::Dialer::new(&Key::new([3; KEY_BYTES]), &binding).unwrap();
    for closes in [false, true] {
        let mut half = connect();
        let _ = half.write_all(&first[..30]);
        if !closes {
            strangers.push(half);
        }
    }
    // A first message with another secret, byte by byte.
    let mut trickle = connect();
    thread::spawn(move || {
        for byte in first {
            if trickle.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    // The same at once, and a confirmation that was made up: the answer is a refusal.
    let mut other_secret = connect();
    let _ = other_secret.write_all(&first);
    let _ = other_secret.write_all(&[1; 48]);
    other_secret.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = Vec::new();
    // The end may be a reset of the connection, which may discard the answer.
    let _ = other_secret.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer == b"maypole\x01", "a stranger got {answer:?}");
    // One that asks for a web page.
    let mut browser = connect();
    let _ = browser.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    strangers.push(browser);
    strangers
}
