//! Runs functions on the threads of streams: several in parallel, or one in the background.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use super::graph::Work;
use super::pool::{self, FunctionJob, Job};
use crate::error::{Error, ResultCode};

/// Runs all works at the same time, the first one on this thread, and returns their results in
/// order when all have ended. The works may wait for each other.
///
/// If this thread [is at work](super::is_at_work), it waits for these works, so they count as at
/// work too.
///
/// # Errors
/// [`Error::System`]: there are not enough threads; then no work has begun.
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
    let (sender, receiver) = mpsc::channel();
    let at_work = pool::is_at_work();
    let mut results = vec![Err(ResultCode::InternalError); 1 + others.len()];
    let job = |(number, work): (usize, Work)| {
        let call = Box::new(move || pool::with_at_work(at_work, || guarded(work)));
        Job::Function(FunctionJob { call, number, result: Some(sender.clone()) })
    };
    if !others.is_empty() {
        let jobs = (1..).zip(others).map(job).collect();
        pool::of_this_process().start_jobs(jobs).map_err(|error| no_thread(&error))?;
    }
    drop(sender);
    for first in works {
        results[0] = guarded(first);
    }
    for (index, result) in receiver {
        results[index] = result;
    }
    Ok(results)
}

/// Runs a function on another thread and returns at once.
///
/// # Errors
/// [`Error::System`]: there is no thread left.
pub fn behind(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let call = Box::new(move || {
        guarded(Box::new(|| {
            work();
            Ok(())
        }))
    });
    let job = Job::Function(FunctionJob { call, number: 0, result: None });
    pool::of_this_process().start_jobs(vec![job]).map_err(|error| no_thread(&error))
}

/// Runs a work; a panic becomes an error.
fn guarded(work: Work) -> Result<(), ResultCode> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("a background task panicked; please report this as a bug of Maypole");
        Err(ResultCode::InternalError)
    })
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::System { call: "pthread_create", errno: error.raw_os_error().unwrap_or(libc::EAGAIN) }
}

#[cfg(test)]
mod tests {
    use maypole_transport::sync::{AtomicU64, Ordering};
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
    fn a_panic_becomes_an_error_and_the_others_go_on() {
        let done = Arc::new(AtomicU64::new(0));
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
            assert_eq!(done.load(Ordering::Relaxed), 2 * (at as u64 + 1));
        }
    }

    #[test]
    fn the_first_runs_on_the_callers_thread_and_all_are_at_work_if_it_is() {
        let look = || {
            let (sender, receiver) = mpsc::channel::<(ThreadId, bool)>();
            let works = (0..2).map(|_| {
                let sender = sender.clone();
                let run = move || {
                    sender.send((std::thread::current().id(), is_at_work())).unwrap();
                    Ok(())
                };
                Box::new(run) as Work
            });
            side_by_side(works.collect()).unwrap();
            drop(sender);
            let seen: Vec<_> = receiver.into_iter().collect();
            let here = std::thread::current().id();
            assert_eq!(seen.iter().filter(|(id, _)| *id == here).count(), 1);
            seen.into_iter().map(|(_, at_work)| at_work).collect::<Vec<_>>()
        };
        assert_eq!(look(), [false, false]);
        let (sender, receiver) = mpsc::channel();
        let stream = Stream::new();
        let run = move || {
            sender.send(look()).unwrap();
            Ok(())
        };
        stream.run(Box::new(run)).unwrap();
        assert_eq!(receiver.recv(), Ok(vec![true, true]));
    }

    #[test]
    fn a_background_function_runs_on_another_thread() {
        let (sender, receiver) = mpsc::channel();
        let here = std::thread::current().id();
        behind(move || sender.send(std::thread::current().id()).unwrap()).unwrap();
        assert_ne!(receiver.recv(), Ok(here));
    }
}
