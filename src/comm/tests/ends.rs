//! Mismatches, damaged messages and aborts: how calls end in errors.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use maypole_algorithms::RedOp;
use maypole_transport::fault::FaultRecipe;

use super::{as_ranks, over_tcp, sum_of};
use crate::bootstrap::UniqueId;
use crate::comm::Communicator;
use crate::config::Config;
use crate::error::Error;

#[test]
fn damaged_tags_are_errors_on_all_ranks_and_never_wrong_results() {
    for (seed, nranks, apart) in [(1, 2, false), (2, 2, true), (3, 3, false), (4, 5, true)] {
        let recipe = FaultRecipe::parse(&format!("seed={seed},delay=0.02:50us,corrupt=0.01"));
        let config = Config {
            slot_bytes: Some(4096),
            fault: recipe,
            p2p_disable: apart,
            ..Config::default()
        };
        let results = as_ranks(nranks, &config, |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            for call in 0..5_000u32 {
                let count = [1, 300, 5000][call as usize % 3];
                let send: Vec<u32> = (0..count).map(|i| i * 5 + rank * call).collect();
                let mut recv = vec![0; send.len()];
                match comm.all_reduce(&send, &mut recv, RedOp::Sum) {
                    Ok(()) => {
                        let right = (0..count).map(|i| n * i * 5 + call * n * (n - 1) / 2);
                        assert!(recv.into_iter().eq(right), "call {call} is wrong");
                    }
                    Err(error) => return Some((call, error)),
                }
            }
            None
        });
        assert!(results.iter().all(Option::is_some), "seed {seed}: {results:?}");
        let noticed = |r: &Option<_>| matches!(r, Some((_, Error::Mismatch { .. })));
        assert!(results.iter().any(noticed), "seed {seed}: {results:?}");
        // A rank may finish a call that fails on another rank, but not the next one.
        let calls = results.iter().flatten().map(|r| r.0);
        let (first, last) = (calls.clone().min(), calls.max());
        assert!(last <= first.map(|f| f + 1), "seed {seed}: {results:?}");
    }
}

#[test]
fn all_ranks_name_the_rank_that_aborts_in_the_middle_of_a_call() {
    // Not in the first call, in which a slow rank may not be connected yet.
    for message in [5, 6, 11, 40] {
        for apart in [false, true] {
            let recipe = FaultRecipe::parse(&format!("delay=0.05:50us,abort=1:{message}"));
            let config = Config { fault: recipe, p2p_disable: apart, ..Config::default() };
            let results = as_ranks(4, &config, |comm| {
                let (send, mut recv) = ([1; 1000], [0; 1000]);
                let error = loop {
                    if let Err(error) = comm.all_reduce(&send, &mut recv, RedOp::Sum) {
                        break error;
                    }
                };
                // The survivors do not inherit the abort.
                let left = (comm.rank() != 1).then(|| comm.shrink(&[1]).expect("the others"));
                (error, left.map(|mut left| (0..50).map(|_| sum_of(&mut left, 1)).max()))
            });
            for (rank, (error, left)) in results.into_iter().enumerate() {
                assert_eq!(error, Error::Aborted { by: 1 }, "rank {rank}, message {message}");
                assert_eq!(left, (rank != 1).then_some(Some(3)));
            }
        }
    }
}

#[test]
fn different_calls_are_errors() {
    let errors = as_ranks(2, &Config::default(), |comm| {
        let (send, mut recv) = (vec![1i32; 8], vec![0i32; 8]);
        let count = 4 + 4 * comm.rank() as usize;
        comm.all_reduce(&send[..count], &mut recv[..count], RedOp::Sum).map_err(|e| e.to_string())
    });
    assert!(errors.iter().all(Result::is_err), "{errors:?}");
    assert!(errors.iter().any(|e| e.as_ref().is_err_and(|e| e.contains("rank"))), "{errors:?}");
}

#[test]
fn an_abort_ends_a_wait() {
    assert_eq!(abort_ends_a_wait(&Config::default()), [true, true]);
}

#[test]
fn an_abort_ends_a_wait_over_tcp() {
    assert_eq!(abort_ends_a_wait(&over_tcp(2)), [true, true]);
}

fn abort_ends_a_wait(config: &Config) -> Vec<bool> {
    let met = Barrier::new(2);
    as_ranks(2, config, move |comm| {
        let mut recv = [0u8; 1];
        // Opens the links, so that the abort has a peer.
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).expect("a first call");
        met.wait();
        if comm.rank() == 1 {
            // Most often the other rank waits by then.
            thread::sleep(Duration::from_millis(50));
            comm.abort_handle().abort();
            return true;
        }
        comm.all_reduce(&[1], &mut recv, RedOp::Sum).is_err() && comm.async_error().is_some()
    })
}

#[test]
fn no_memory_is_lent_after_an_error() {
    for round in 0..20u64 {
        let met = Barrier::new(3);
        let results = as_ranks(3, &Config::default(), move |comm| {
            let rank = comm.rank();
            let mut sum = [0];
            comm.all_reduce(&[1], &mut sum, RedOp::Sum).expect("a first call");
            met.wait();
            if rank == 2 {
                thread::sleep(Duration::from_micros(round * 150));
                comm.abort_handle().abort();
                return true;
            }
            let (mut send, mut recv) = (vec![1u64; 1 << 20], vec![0u64; 1 << 20]);
            let failed = comm.all_reduce(&send, &mut recv, RedOp::Sum).is_err();
            send.fill(7);
            failed && comm.host.links.unreleased.is_empty()
        });
        assert_eq!(results, [true; 3]);
    }
}

/// Ranks of one process, which connect when they first need each other.
#[test]
fn a_message_of_a_rank_that_left_reaches_a_rank_that_connects_later() {
    let id = UniqueId::create().expect("a unique id");
    let (left, it_left) = mpsc::channel();
    let sends = thread::spawn(move || {
        let mut comm = Communicator::new(&id, 0, 2).expect("a communicator");
        comm.reduce(&[7u32], &mut [0], RedOp::Sum, 1).expect("to send");
    });
    let receives = thread::spawn(move || {
        let mut comm = Communicator::new(&id, 1, 2).expect("a communicator");
        it_left.recv().expect("the test tells");
        let mut sum = [0];
        comm.reduce(&[5u32], &mut sum, RedOp::Sum, 1).map(|()| sum)
    });
    sends.join().expect("it ran");
    left.send(()).expect("the other waits");
    assert_eq!(receives.join().expect("it ran"), Ok([12]));
}

/// A panic must not leave the communicator usable, with a call that the other ranks count.
#[test]
fn a_panic_in_a_call_ends_the_communicator_on_all_ranks() {
    for (message, apart) in [(5, false), (9, true)] {
        let recipe = FaultRecipe::parse(&format!("panic=1:{message}"));
        let config = Config { fault: recipe, p2p_disable: apart, ..Config::default() };
        let results = as_ranks(3, &config, |comm| {
            let (send, mut recv) = ([1; 1000], [0; 1000]);
            let mut sum = || comm.all_reduce(&send, &mut recv, RedOp::Sum);
            let error = std::iter::from_fn(|| Some(sum())).find_map(Result::err);
            (error.map(|it| it.to_string()), sum().map_err(|it| it.to_string()))
        });
        for (rank, (error, next)) in results.into_iter().enumerate() {
            let error = error.expect("an error");
            let text = format!("a panic: injected: message {message} is not sent");
            assert!(error.contains(&text), "rank {rank}: {error}");
            assert!(rank == 1 || error.contains("rank 1"), "rank {rank}: {error}");
            assert_eq!(next, Err(error), "rank {rank}");
        }
    }
}

#[test]
fn a_panic_of_the_service_thread_ends_the_communicator_on_all_ranks() {
    let met = Barrier::new(3);
    let results = as_ranks(3, &Config::default(), move |comm| {
        sum_of(comm, 1);
        met.wait();
        if comm.rank() == 1 {
            comm.host.control.shared().panic_in_service();
        }
        let (send, mut recv) = ([1; 1000], [0; 1000]);
        let mut sum = || comm.all_reduce(&send, &mut recv, RedOp::Sum);
        std::iter::from_fn(|| Some(sum())).find_map(Result::err).map(|it| it.to_string())
    });
    for (rank, error) in results.into_iter().enumerate() {
        let error = error.expect("an error");
        assert!(error.contains("rank 1"), "rank {rank}: {error}");
        assert!(error.contains("a panic: injected into the service"), "rank {rank}: {error}");
    }
}
