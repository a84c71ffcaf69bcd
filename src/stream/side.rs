//! Work that is on no stream: several pieces side by side, or one behind the caller's back, on the threads that streams have.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use super::graph::Work;
use super::pool::{self, Errand, Job};
use crate::error::{Error, ResultCode};

/// Runs all of them at once, the first on this thread; returns when all have ended, with their results in order. Any of them may wait for any
/// other.
///
/// What must not be done on a thread that [is at work](super::is_at_work) must not be done in these either, if they are
/// run from such a thread: it waits for them.
///
/// # Errors
/// [`Error::System`] if there are not threads enough; then none has begun.
///
/// ```
/// use maypole::stream::{Work, side_by_side};
///
/// let barrier = std::sync::Arc::new(std::sync::Barrier::new(3));
/// let works = (0..3).map(|_| {
///     let barrier = barrier.clone();
///     Box::new(move || {
///         barrier.wait();
///         Ok(())
///     }) as Work
/// });
/// assert_eq!(side_by_side(works.collect())?, [Ok(()); 3]);
/// # Ok::<(), maypole::Error>(())
/// ```
pub fn side_by_side(mut works: Vec<Work>) -> Result<Vec<Result<(), ResultCode>>, Error> {
    if works.is_empty() {
        return Ok(Vec::new());
    }
    let others = works.split_off(1);
    let (told, heard) = mpsc::channel();
    let at_work = pool::is_at_work();
    let mut results = vec![Err(ResultCode::InternalError); 1 + others.len()];
    let errand = |(number, work): (usize, Work)| {
        let call = Box::new(move || pool::with_at_work(at_work, || guarded(work)));
        Job::Errand(Errand { call, number, told: Some(told.clone()) })
    };
    if !others.is_empty() {
        let jobs = (1..).zip(others).map(errand).collect();
        pool::here().hand(jobs).map_err(|error| no_thread(&error))?;
    }
    drop(told);
    for first in works {
        results[0] = guarded(first);
    }
    for (at, result) in heard {
        results[at] = result;
    }
    Ok(results)
}

/// Runs it on another thread; returns at once.
///
/// # Errors
/// [`Error::System`] if there is no thread for it.
pub fn behind(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let call = Box::new(move || {
        guarded(Box::new(|| {
            work();
            Ok(())
        }))
    });
    let job = Job::Errand(Errand { call, number: 0, told: None });
    pool::here().hand(vec![job]).map_err(|error| no_thread(&error))
}

fn guarded(work: Work) -> Result<(), ResultCode> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("a panic in work that runs beside other work; please report it");
        Err(ResultCode::InternalError)
    })
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::System { call: "pthread_create", errno: error.raw_os_error().unwrap_or(libc::EAGAIN) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};
    use std::thread::ThreadId;

    use super::super::{Stream, is_at_work};
    use super::*;

    #[test]
    fn all_run_at_once_and_results_keep_their_order() {
        let barrier = Arc::new(Barrier::new(4));
        let codes = [None, Some(ResultCode::Timeout), None, Some(ResultCode::SystemError)];
        let work = |code: Option<ResultCode>| {
            let barrier = barrier.clone();
            let run = move || {
                barrier.wait();
                code.map_or(Ok(()), Err)
            };
            Box::new(run) as Work
        };
        let results = side_by_side(codes.map(work).into()).unwrap();
        assert_eq!(results, codes.map(|code| code.map_or(Ok(()), Err)));
        assert_eq!(side_by_side(Vec::new()), Ok(Vec::new()));
    }

    #[test]
    fn a_panic_is_an_error_and_the_others_go_on() {
        let done = Arc::new(AtomicUsize::new(0));
        for at in 0..3 {
            let works = (0..3).map(|i| {
                let done = done.clone();
                let run = move || {
                    assert!(i != at, "on purpose");
                    done.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                Box::new(run) as Work
            });
            let results = side_by_side(works.collect()).unwrap();
            assert_eq!(results[at], Err(ResultCode::InternalError));
            assert_eq!(done.load(Ordering::Relaxed), 2 * (at + 1));
        }
    }

    #[test]
    fn the_first_runs_on_the_callers_thread_and_all_are_at_work_if_it_is() {
        let look = || {
            let (told, heard) = mpsc::channel::<(ThreadId, bool)>();
            let works = (0..2).map(|_| {
                let told = told.clone();
                let run = move || {
                    told.send((std::thread::current().id(), is_at_work())).unwrap();
                    Ok(())
                };
                Box::new(run) as Work
            });
            side_by_side(works.collect()).unwrap();
            drop(told);
            let seen: Vec<_> = heard.into_iter().collect();
            let here = std::thread::current().id();
            assert_eq!(seen.iter().filter(|(id, _)| *id == here).count(), 1);
            seen.into_iter().map(|(_, at_work)| at_work).collect::<Vec<_>>()
        };
        assert_eq!(look(), [false, false]);
        let (told, heard) = mpsc::channel();
        let stream = Stream::new();
        let run = move || {
            told.send(look()).unwrap();
            Ok(())
        };
        stream.run(Box::new(run)).unwrap();
        assert_eq!(heard.recv(), Ok(vec![true, true]));
    }

    #[test]
    fn what_is_behind_runs_elsewhere() {
        let (told, heard) = mpsc::channel();
        let here = std::thread::current().id();
        behind(move || told.send(std::thread::current().id()).unwrap()).unwrap();
        assert_ne!(heard.recv(), Ok(here));
    }
}
