//! Waits for ranks that come late, have left, or use another communicator: reports, timeouts,
//! aborts.

use std::sync::{Barrier, Mutex, mpsc};
use std::time::Duration;

use maypole::config::Config;
use maypole::{Communicator, DelayReason, Error, UniqueId};
use maypole_transport::error::LinkError;

use super::{as_ranks, reporting_after, sum};

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
