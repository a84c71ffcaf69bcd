//! The threads that run what is ready. Each job gets one at once, however many run: any of them may wait for another.
//! A thread that has nothing to do is kept for a while, or until all are [dismissed](Pool::dismiss).

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::graph::{Node, Work};
use crate::error::ResultCode;
use crate::process::{self, PerProcess};

/// How long a thread waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(10);

static POOL: PerProcess<Pool> = PerProcess::new();

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// What a thread does.
pub(super) enum Job {
    /// Runs a piece of work and what becomes ready by it.
    Node(Arc<Node>),
    /// Is no work of a stream.
    Errand(Errand),
}

/// Something to be called, and to whom its result is told: when the thread is there for the next job, and not before, or who hears of
/// the end of many would find no thread.
pub(super) struct Errand {
    pub(super) call: Work,
    /// The result is told with this number.
    pub(super) number: usize,
    pub(super) told: Option<Sender<Told>>,
}

/// Number and result of an errand.
pub(super) type Told = (usize, Result<(), ResultCode>);

/// The threads of this process.
#[derive(Default)]
pub(super) struct Pool {
    /// Held while something is issued.
    order: Mutex<()>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that wait for a job, or are about to: at least as many as there are jobs that wait for a thread.
    idle: usize,
    ready: VecDeque<Job>,
    /// Who has nothing to do ends.
    dismissed: bool,
}

/// This process' threads.
pub(super) fn here() -> &'static Pool {
    POOL.get()
}

/// True on a thread that runs work of a stream, or what such work waits for.
pub(super) fn is_at_work() -> bool {
    AT_WORK.get()
}

/// Calls it as on a thread that is, or is not, at work.
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

impl Pool {
    /// What is issued while the guard lives has a place in the order of all that is issued.
    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a node that is ready, on a thread of its own.
    pub(super) fn run(&'static self, node: Arc<Node>) {
        if let Err(error) = self.hand(vec![Job::Node(Arc::clone(&node))]) {
            // The issuer waits, but nothing is lost or out of order.
            log::warn!(
                "no thread for a stream ({error}): its work runs on the thread that issued it"
            );
            self.work(node);
        }
    }

    /// Gives each of the jobs to a thread of its own: none of them waits for another one's thread.
    ///
    /// # Errors
    /// If there are no more threads; then none of them has begun.
    pub(super) fn hand(&'static self, jobs: Vec<Job>) -> std::io::Result<()> {
        let mut state = self.state();
        let (count, wanted) = (jobs.len(), state.ready.len() + jobs.len());
        while state.idle < wanted {
            // The stack has the default size: the program's callbacks run on it.
            process::spawn_thread("maypole-stream", None, move || self.serve())?;
            state.idle += 1;
        }
        state.dismissed = false;
        state.ready.extend(jobs);
        drop(state);
        (0..count).for_each(|_| self.wake.notify_one());
        Ok(())
    }

    /// Threads that have nothing to do end now, and not only after a while; others when they have done what they do.
    pub(super) fn dismiss(&self) {
        self.state().dismissed = true;
        self.wake.notify_all();
    }

    /// The life of a thread, which is counted as idle.
    fn serve(&'static self) {
        while let Some(job) = self.next() {
            match job {
                Job::Node(node) => {
                    self.work(node);
                    self.state().idle += 1;
                }
                Job::Errand(Errand { call, number, told }) => {
                    let result = call();
                    self.state().idle += 1;
                    if let Some(told) = told {
                        // Who does not listen does not want to know.
                        let _ = told.send((number, result));
                    }
                }
            }
        }
    }

    /// The next job for an idle thread; none if it is to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        let mut patient = true;
        loop {
            if let Some(job) = state.ready.pop_front() {
                state.idle -= 1;
                return Some(job);
            }
            if state.dismissed || !patient {
                state.idle -= 1;
                return None;
            }
            let waited =
                self.wake.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            patient = !waited.1.timed_out();
        }
    }

    /// Runs a node and what becomes ready by it: one after it here, the others beside it.
    fn work(&'static self, node: Arc<Node>) {
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
