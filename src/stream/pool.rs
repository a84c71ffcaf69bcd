//! The threads that run works. Each job gets a thread at once, however many are running, because
//! any job may wait for another. An idle thread is kept for a while, or until the pool is
//! [dismissed](ThreadPool::dismiss).

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::graph::{Work, WorkNode};
use crate::error::ResultCode;
use crate::process::{self, PerProcess};

/// How long an idle thread is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

static POOL: PerProcess<ThreadPool> = PerProcess::new();

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// A job for a thread.
pub(super) enum Job {
    /// A work of a stream, and the works that become ready when it ends.
    Node(Arc<WorkNode>),
    /// A function that is no work of a stream.
    Function(FunctionJob),
}

/// A function to be called. Its result is sent only when the thread counts as idle again: a
/// receiver that has got many results then finds as many idle threads.
pub(super) struct FunctionJob {
    pub(super) call: Work,
    /// The number that is sent with the result.
    pub(super) number: usize,
    pub(super) result: Option<Sender<JobResult>>,
}

/// The number and the result of a function job.
pub(super) type JobResult = (usize, Result<(), ResultCode>);

/// The threads of this process.
#[derive(Default)]
pub(super) struct ThreadPool {
    /// Held while work is issued.
    order: Mutex<()>,
    state: Mutex<PoolState>,
    wake: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// The number of threads that wait for a job or are about to: at least the number of ready
    /// jobs.
    idle: usize,
    ready: VecDeque<Job>,
    /// Whether idle threads have to end.
    dismissed: bool,
}

/// The pool of this process.
pub(super) fn of_this_process() -> &'static ThreadPool {
    POOL.get()
}

/// Whether this thread runs work of a stream, or a function for which such work waits.
pub(super) fn is_at_work() -> bool {
    AT_WORK.get()
}

/// Calls a function with [`is_at_work`] set to `at_work`.
pub(super) fn with_at_work<T>(at_work: bool, call: impl FnOnce() -> T) -> T {
    struct Restored(bool);
    impl Drop for Restored {
        fn drop(&mut self) {
            AT_WORK.set(self.0);
        }
    }
    let _before = Restored(AT_WORK.replace(at_work));
    call()
}

impl ThreadPool {
    /// Locks the order of issue: works of several threads are issued one after the other.
    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a new node run as soon as the nodes that it waits for have ended.
    pub(super) fn start(&'static self, node: &Arc<WorkNode>) {
        if node.release() {
            self.run(Arc::clone(node));
        }
    }

    /// Runs a ready node on a thread of its own.
    fn run(&'static self, node: Arc<WorkNode>) {
        if let Err(error) = self.start_jobs(vec![Job::Node(Arc::clone(&node))]) {
            // The issuing thread runs it: slower, but in order and complete.
            log::warn!(
                "cannot start a thread for a stream ({error}); the thread that issued the work \
                 runs it"
            );
            self.work(node);
        }
    }

    /// Gives each job to a thread of its own.
    ///
    /// # Errors
    /// The system has no thread left; then no job has begun.
    pub(super) fn start_jobs(&'static self, jobs: Vec<Job>) -> std::io::Result<()> {
        let mut state = self.state();
        let (count, wanted) = (jobs.len(), state.ready.len() + jobs.len());
        while state.idle < wanted {
            // The stack has the default size, because callbacks of the program run on it.
            process::spawn_thread("maypole-stream", None, move || self.serve())?;
            state.idle += 1;
        }
        state.dismissed = false;
        state.ready.extend(jobs);
        drop(state);
        (0..count).for_each(|_| self.wake.notify_one());
        Ok(())
    }

    /// Ends idle threads now, and the others after their jobs.
    pub(super) fn dismiss(&self) {
        self.state().dismissed = true;
        self.wake.notify_all();
    }

    /// The main loop of a thread, which counts as idle at first.
    fn serve(&'static self) {
        while let Some(job) = self.next() {
            match job {
                Job::Node(node) => {
                    self.work(node);
                    self.state().idle += 1;
                }
                Job::Function(FunctionJob { call, number, result: sender }) => {
                    let result = call();
                    self.state().idle += 1;
                    if let Some(sender) = sender {
                        // The receiver may be gone, if the result is not needed.
                        let _ = sender.send((number, result));
                    }
                }
            }
        }
    }

    /// The next job for an idle thread; `None` if the thread has to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        let mut timed_out = false;
        loop {
            if let Some(job) = state.ready.pop_front() {
                state.idle -= 1;
                return Some(job);
            }
            if state.dismissed || timed_out {
                state.idle -= 1;
                return None;
            }
            let waited =
                self.wake.wait_timeout(state, IDLE_TIMEOUT).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            timed_out = waited.1.timed_out();
        }
    }

    /// Runs a node, then on this thread one of the nodes that become ready; the others get threads
    /// of their own.
    fn work(&'static self, node: Arc<WorkNode>) {
        with_at_work(true, || {
            let mut next = Some(node);
            while let Some(node) = next {
                let mut ready = node.run();
                next = ready.pop();
                ready.into_iter().for_each(|other| self.run(other));
            }
        });
    }
}
