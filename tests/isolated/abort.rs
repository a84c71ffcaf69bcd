//! Tests of an abort from another thread at any moment: before, during and after init. No rank
//! hangs, all learn which rank aborted, and nothing is left behind.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::splitmix::Random;
use maypole::Options;
use maypole::config::Config;
use maypole::{AbortSignal, Communicator, Error, RedOp, UniqueId};
use maypole_transport::LinkError;

const PATIENCE: Duration = Duration::from_secs(60);

/// The numbers of open descriptors and of threads of the library. (The test harness starts and ends
/// threads too.)
fn resources() -> [usize; 2] {
    let entries = |folder| std::fs::read_dir(folder).expect("a folder of /proc");
    let ours = entries("/proc/self/task").filter(|task| {
        // A thread that has just ended has no name.
        let name = task.as_ref().map(|task| std::fs::read_to_string(task.path().join("comm")));
        name.is_ok_and(|name| name.is_ok_and(|name| name.starts_with("maypole")))
    });
    [entries("/proc/self/fd").count(), ours.count()]
}

/// Fails unless the resources are again as before; threads of the library may take a moment to end.
fn assert_nothing_is_left(before: [usize; 2]) {
    let until = Instant::now() + PATIENCE;
    while resources().iter().zip(before).any(|(now, before)| *now > before) {
        assert!(Instant::now() < until, "before: {before:?}, after: {:?}", resources());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a rank in a thread of its own. It makes calls until one fails, and sends the error.
fn start(
    id: UniqueId,
    nranks: u32,
    rank: u32,
    config: &Config,
    pause: Duration,
) -> (AbortSignal, mpsc::Receiver<(bool, Error)>) {
    let signal = AbortSignal::new().expect("a signal");
    let options = Options { abort: Some(signal.clone()), ..Options::default() };
    let (config, (say, hear)) = (config.clone(), mpsc::channel());
    std::thread::spawn(move || {
        std::thread::sleep(pause);
        let result = match Communicator::builder(&id)
            .rank(rank, nranks)
            .config(config.clone())
            .options(options.clone())
            .build()
        {
            Err(error) => (false, error),
            Ok(mut comm) => (true, until_it_fails(&mut comm)),
        };
        say.send(result).expect("the test listens");
    });
    (signal, hear)
}

fn until_it_fails(comm: &mut Communicator) -> Error {
    let (send, mut recv) = (vec![1.0f32; 5000], vec![0.0f32; 5000]);
    loop {
        for count in [1, 5000] {
            if let Err(error) = comm.all_reduce(&send[..count], &mut recv[..count], RedOp::Sum) {
                return error;
            }
        }
        // A single rank waits for no other.
        if let Some(error) = comm.async_error() {
            return error;
        }
    }
}

fn media(round: u64) -> Config {
    match round % 3 {
        0 => Config::default(),
        1 => Config { p2p_disable: true, ..Config::default() },
        _ => Config { p2p_disable: true, shm_disable: true, ..Config::default() },
    }
}

/// Aborts one rank or two at random moments, and checks the errors of all ranks. Returns true for
/// each rank that had joined.
fn round(number: u64, random: &mut Random) -> Vec<bool> {
    let nranks = 1 + random.below(5) as u32;
    let id = UniqueId::create().expect("a unique id");
    let ranks: Vec<_> = (0..nranks)
        .map(|rank| {
            let pause = Duration::from_micros(random.below(3000));
            start(id, nranks, rank, &media(number), pause)
        })
        .collect();
    let mut culprits: Vec<u32> =
        (0..=random.below(2)).map(|_| random.below(nranks.into()) as u32).collect();
    for culprit in &culprits {
        std::thread::sleep(Duration::from_micros(random.below(12_000)));
        ranks[*culprit as usize].0.abort();
    }
    culprits.dedup();
    let said = ranks.iter().enumerate().map(|(rank, (_, hear))| {
        let story = format!("round {number}: rank {rank} of {nranks}, aborted by {culprits:?}");
        let (joined, error) =
            hear.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{story}: hangs ({e})"));
        match error {
            Error::Aborted { by } if culprits.contains(&by) => {}
            // Once there are links, a rank may notice their end before it gets the reason.
            Error::Link(LinkError::Aborted { by, .. }) if joined && culprits.contains(&by) => {}
            Error::Link(LinkError::PeerLeft { .. }) if joined => {}
            other => panic!("{story}: {other:?}, joined: {joined}"),
        }
        joined
    });
    said.collect()
}

#[test]
fn an_abort_at_any_moment_of_init_ends_all_ranks_and_leaves_nothing() {
    let _alone = crate::alone();
    let before = resources();
    let mut random = Random(7);
    let started = Instant::now();
    let joined: Vec<bool> = (0..100).flat_map(|number| round(number, &mut random)).collect();
    println!(
        "100 rounds in {:?}; {} of {} ranks had joined",
        started.elapsed(),
        joined.iter().filter(|joined| **joined).count(),
        joined.len()
    );
    assert_nothing_is_left(before);
}

#[test]
#[ignore = "takes minutes"]
fn an_abort_at_very_many_moments_of_init_ends_all_ranks_and_leaves_nothing() {
    let _alone = crate::alone();
    let before = resources();
    let mut random = Random(8);
    for number in 0..3000 {
        round(number, &mut random);
    }
    assert_nothing_is_left(before);
}

/// A rank never comes, so only the abort can end the init.
#[test]
fn an_abort_ends_an_init_for_which_a_rank_is_missing() {
    let _alone = crate::alone();
    let before = resources();
    for (nranks, absent, culprit) in [(2, 1, 0), (3, 0, 2), (7, 6, 5), (7, 3, 1), (7, 1, 3)] {
        let id = UniqueId::create().expect("a unique id");
        let none = Duration::ZERO;
        let ranks: Vec<_> = (0..nranks)
            .filter(|rank| *rank != absent)
            .map(|rank| (rank, start(id, nranks, rank, &Config::default(), none)))
            .collect();
        std::thread::sleep(Duration::from_millis(30));
        let signal = ranks.iter().find(|(rank, _)| *rank == culprit).expect("it is there");
        signal.1.0.abort();
        let check = |rank: u32, hear: &mpsc::Receiver<(bool, Error)>| {
            let (joined, error) = hear.recv_timeout(PATIENCE).expect("no rank hangs");
            let story = format!("rank {rank} of {nranks}, without {absent}");
            assert_eq!((joined, error), (false, Error::Aborted { by: culprit }), "{story}");
        };
        ranks.iter().for_each(|(rank, (_, hear))| check(*rank, hear));
        // A rank that comes later gets the error too.
        check(absent, &start(id, nranks, absent, &Config::default(), none).1);
    }
    assert_nothing_is_left(before);
}

#[test]
fn a_raised_signal_ends_the_next_init_and_the_child_communicators() {
    let _alone = crate::alone();
    let before = resources();
    let signal = AbortSignal::new().expect("a signal");
    let options = Options { abort: Some(signal.clone()), ..Options::default() };
    let init = || {
        let id = UniqueId::create().expect("a unique id");
        Communicator::builder(&id)
            .rank(0, 1)
            .config(Config::default())
            .options(options.clone())
            .build()
    };
    let mut first = init().expect("alone");
    let mut second = first.split(Some(0), 0).expect("a part").expect("this rank is in it");
    signal.abort();
    for comm in [&mut first, &mut second] {
        assert_eq!(comm.async_error(), Some(Error::Aborted { by: 0 }));
    }
    assert_eq!(init().err(), Some(Error::Aborted { by: 0 }));
    drop((first, second, options, signal));
    assert_nothing_is_left(before);
}

/// Rank 0 never makes the call for which rank 1 opens its links. The lower rank connects, and the
/// higher one waits for that.
#[test]
fn an_abort_ends_a_first_call_that_still_opens_links() {
    let _alone = crate::alone();
    let before = resources();
    for number in 0..3 {
        let id = UniqueId::create().expect("a unique id");
        let (say, hear) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let config = media(number);
        let idle = std::thread::spawn(move || {
            let comm = Communicator::builder(&id).rank(0, 2).config(config.clone()).build();
            // Keep the communicator until the other rank has ended.
            let _ = wait.recv();
            drop(comm);
        });
        let config = media(number);
        std::thread::spawn(move || {
            let comm = Communicator::builder(&id).rank(1, 2).config(config.clone()).build();
            let mut comm = comm.expect("both come");
            let abort = comm.abort_handle();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                abort.abort();
            });
            say.send(until_it_fails(&mut comm)).expect("the test listens");
        });
        let error = hear.recv_timeout(PATIENCE).expect("no rank hangs");
        assert_eq!(error, Error::Aborted { by: 1 }, "media {number}");
        go.send(()).expect("rank 0 waits");
        idle.join().expect("rank 0 ran");
    }
    assert_nothing_is_left(before);
}
