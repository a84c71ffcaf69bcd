//! The graph of issued works: its nodes, and the ends that a stream has in it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ResultCode};
use crate::process;

/// A function that runs on some thread.
pub type Work = Box<dyn FnOnce() -> Result<(), ResultCode> + Send>;

/// A work in the graph.
pub(super) struct WorkNode {
    state: Mutex<NodeState>,
    ended: Condvar,
    chains: Vec<Arc<StreamChain>>,
}

struct NodeState {
    work: Option<Work>,
    /// The number of nodes that this one waits for; one more until it is started.
    waits_for: usize,
    /// The nodes that wait for this one.
    followers: Vec<Arc<WorkNode>>,
    /// The result, after the work has ended.
    result: Option<Result<(), ResultCode>>,
}

/// The end of a stream in the graph.
pub(super) struct StreamChain {
    /// The fork generation of the process that made the stream.
    generation: u32,
    state: Mutex<ChainState>,
}

#[derive(Default)]
struct ChainState {
    /// The nodes that the next work waits for.
    ends: Vec<Arc<WorkNode>>,
    failure: Option<ResultCode>,
    event: Option<OwnedFd>,
}

/// A handle of an issued work.
#[derive(Clone)]
pub struct WorkTicket(Arc<WorkNode>);

/// Locks a mutex. A poisoned one is used: nothing under these locks panics halfway through a
/// change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkNode {
    pub(super) fn new(work: Work, chains: Vec<Arc<StreamChain>>) -> Arc<Self> {
        let state =
            NodeState { work: Some(work), waits_for: 1, followers: Vec::new(), result: None };
        Arc::new(Self { state: Mutex::new(state), ended: Condvar::new(), chains })
    }

    /// Makes the node wait for the ends of its streams.
    pub(super) fn follow_chains(self: &Arc<Self>) {
        for chain in &self.chains {
            let ends = lock(&chain.state).ends.clone();
            ends.iter().for_each(|end| self.follow(end));
        }
    }

    fn follow(self: &Arc<Self>, earlier: &Self) {
        // Both locks are never held at once. `waits_for` cannot become 0 in between, since the node
        // is not started.
        lock(&self.state).waits_for += 1;
        let mut state = lock(&earlier.state);
        if state.result.is_none() {
            state.followers.push(Arc::clone(self));
            return;
        }
        drop(state);
        lock(&self.state).waits_for -= 1;
    }

    /// Counts one node less to wait for; true if it was the last, so that the node has to run.
    pub(super) fn release(&self) -> bool {
        let mut state = lock(&self.state);
        state.waits_for -= 1;
        state.waits_for == 0
    }

    /// Runs the work, which waits for nothing any more, on this thread. Returns the nodes that may
    /// run now.
    pub(super) fn run(&self) -> Vec<Arc<Self>> {
        let work = lock(&self.state).work.take();
        // There is no work if it was cancelled.
        let result = work.map_or(Ok(()), |work| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            caught.unwrap_or_else(|_| {
                log::error!("work of a stream panicked; please report this as a bug of Maypole");
                Err(ResultCode::InternalError)
            })
        });
        self.finish(result)
    }

    fn finish(&self, result: Result<(), ResultCode>) -> Vec<Arc<Self>> {
        if let Err(code) = result {
            for chain in &self.chains {
                lock(&chain.state).failure.get_or_insert(code);
            }
        }
        let mut state = lock(&self.state);
        state.result = Some(result);
        let followers = std::mem::take(&mut state.followers);
        drop(state);
        self.ended.notify_all();
        self.chains.iter().for_each(|chain| chain.ended(self));
        followers.into_iter().filter(|node| node.release()).collect()
    }

    fn has_ended(&self) -> bool {
        lock(&self.state).result.is_some()
    }

    fn wait(&self) -> Result<(), ResultCode> {
        let mut state = lock(&self.state);
        loop {
            match state.result {
                Some(result) => return result,
                None => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Makes the nodes the new ends of their streams, whose former ends they wait for.
pub(super) fn become_ends(nodes: &[Arc<WorkNode>]) {
    let chains =
        || nodes.iter().flat_map(|node| node.chains.iter().map(move |chain| (node, chain)));
    for (_, chain) in chains() {
        lock(&chain.state).ends.clear();
    }
    for (node, chain) in chains() {
        lock(&chain.state).ends.push(Arc::clone(node));
    }
}

impl StreamChain {
    pub(super) fn new() -> Self {
        process::notice_forks();
        Self { generation: process::generation(), state: Mutex::default() }
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == process::generation()
    }

    fn ends(&self) -> Vec<Arc<WorkNode>> {
        lock(&self.state).ends.clone()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ends().iter().all(|end| end.has_ended())
    }

    pub(super) fn wait(&self) {
        for end in self.ends() {
            // A failure is kept in the chain.
            let _ = end.wait();
        }
    }

    pub(super) fn failure(&self) -> Option<ResultCode> {
        lock(&self.state).failure
    }

    pub(super) fn take_failure(&self) -> Option<ResultCode> {
        lock(&self.state).failure.take()
    }

    /// Adds the ends of another stream to the ends of this one.
    pub(super) fn join(&self, other: &Self) {
        // If `other` is this stream, all its ends are known already.
        for end in other.ends() {
            let mut state = lock(&self.state);
            if !end.has_ended() && !state.ends.iter().any(|known| Arc::ptr_eq(known, &end)) {
                state.ends.push(end);
            }
        }
    }

    pub(super) fn event_fd(&self) -> Result<RawFd, Error> {
        let mut state = lock(&self.state);
        if let Some(event) = &state.event {
            return Ok(event.as_raw_fd());
        }
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return Err(Error::System { call: "eventfd", errno });
        }
        // SAFETY: the system has just made this descriptor, and nothing else owns it.
        state.event = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(fd)
    }

    /// Removes a node that has ended, and counts it for the event descriptor.
    fn ended(&self, node: &WorkNode) {
        let mut state = lock(&self.state);
        // WorkNode and chain own each other, so this also breaks the reference cycle.
        state.ends.retain(|end| !std::ptr::eq(&raw const **end, node));
        if let Some(event) = &state.event {
            let one = 1u64.to_ne_bytes();
            // It fails if the counter is full, and then the descriptor is readable anyway.
            // SAFETY: `one` is valid for a read of its length.
            let _ = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

impl WorkTicket {
    pub(super) fn new(node: Arc<WorkNode>) -> Self {
        Self(node)
    }

    /// Drops the work if it has not begun. Its position in the order remains: later work still
    /// waits for earlier work.
    pub fn cancel(&self) {
        let work = lock(&self.0.state).work.take();
        // Dropped without the lock, because the destructor may take other locks.
        drop(work);
    }

    /// Whether the work has ended; a cancelled work ends when the work that it waited for has
    /// ended.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Waits until the work has ended.
    ///
    /// # Errors
    /// The error that the work returned.
    pub fn wait(&self) -> Result<(), ResultCode> {
        self.0.wait()
    }
}
