//! The threads that run what is ready. Each piece gets one at once, however many run: any of them may wait for another.
//! A thread that has nothing to do is kept for a while.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::graph::Node;
use super::per_process::PerProcess;
use crate::watch;

/// How long a thread waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(10);

static POOL: PerProcess<Pool> = PerProcess::new();

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

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
    /// Threads that wait for work: at least as many as there is work that waits for a thread.
    idle: usize,
    ready: VecDeque<Arc<Node>>,
}

/// This process' threads.
pub(super) fn here() -> &'static Pool {
    POOL.get()
}

/// True on these threads.
pub(super) fn is_at_work() -> bool {
    AT_WORK.get()
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
        let mut state = self.state();
        if state.idle > state.ready.len() {
            state.ready.push_back(node);
            drop(state);
            self.wake.notify_one();
            return;
        }
        drop(state);
        let first = Arc::clone(&node);
        let spawned = watch::without_signals(|| {
            // The stack is as large as others': the program's callbacks run on it.
            std::thread::Builder::new()
                .name("maypole-stream".into())
                .spawn(move || self.serve(first))
        });
        if let Err(error) = spawned {
            // The issuer waits, but nothing is lost or out of order.
            log::warn!(
                "no thread for a stream ({error}): its work runs on the thread that issued it"
            );
            self.work(node);
        }
    }

    fn serve(&'static self, first: Arc<Node>) {
        let mut next = Some(first);
        while let Some(node) = next {
            self.work(node);
            next = self.wait();
        }
    }

    /// The next node for an idle thread; none if it has waited for too long.
    fn wait(&self) -> Option<Arc<Node>> {
        let mut state = self.state();
        state.idle += 1;
        loop {
            if let Some(node) = state.ready.pop_front() {
                state.idle -= 1;
                return Some(node);
            }
            let waited =
                self.wake.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.ready.is_empty() {
                state.idle -= 1;
                return None;
            }
        }
    }

    /// Runs a node and what becomes ready by it: one after it here, the others beside it.
    fn work(&'static self, node: Arc<Node>) {
        let before = AT_WORK.replace(true);
        let mut next = Some(node);
        while let Some(node) = next {
            let mut ready = node.run();
            next = ready.pop();
            ready.into_iter().for_each(|other| self.run(other));
        }
        AT_WORK.set(before);
    }
}
