//! The graph of what was issued: nodes, and lines, which are the ends that a stream has in it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::pool::Pool;
use crate::error::{Error, ResultCode};
use crate::process;

/// Something to be done, on some thread.
pub type Work = Box<dyn FnOnce() -> Result<(), ResultCode> + Send>;

/// A piece of work in the graph.
pub(super) struct Node {
    state: Mutex<State>,
    ended: Condvar,
    lines: Vec<Arc<Line>>,
}

struct State {
    work: Option<Work>,
    /// How many others it waits for; one more until it is started.
    before: usize,
    after: Vec<Arc<Node>>,
    /// How it ended, once it has.
    end: Option<Result<(), ResultCode>>,
}

/// What a stream is in the graph.
pub(super) struct Line {
    /// Of the process that it belongs to.
    generation: u32,
    state: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    /// The next piece waits for these.
    ends: Vec<Arc<Node>>,
    failure: Option<ResultCode>,
    event: Option<OwnedFd>,
}

/// A piece of work that was issued.
#[derive(Clone)]
pub struct Ticket(Arc<Node>);

/// Nothing under these locks panics half way: what a panic elsewhere leaves is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(super) fn new(work: Work, lines: Vec<Arc<Line>>) -> Arc<Self> {
        let state = State { work: Some(work), before: 1, after: Vec::new(), end: None };
        Arc::new(Self { state: Mutex::new(state), ended: Condvar::new(), lines })
    }

    /// Waits for the ends of its lines.
    pub(super) fn follow_lines(self: &Arc<Self>) {
        for line in &self.lines {
            let ends = lock(&line.state).ends.clone();
            ends.iter().for_each(|end| self.follow(end));
        }
    }

    fn follow(self: &Arc<Self>, earlier: &Self) {
        // Not both locks at once. It may be let go in between only after the start.
        lock(&self.state).before += 1;
        let mut state = lock(&earlier.state);
        if state.end.is_none() {
            state.after.push(Arc::clone(self));
            return;
        }
        drop(state);
        lock(&self.state).before -= 1;
    }

    /// From now on it runs as soon as it may.
    pub(super) fn start(self: &Arc<Self>, pool: &'static Pool) {
        if self.let_go() {
            pool.run(Arc::clone(self));
        }
    }

    /// One that it waits for has ended; true if it was the last.
    fn let_go(&self) -> bool {
        let mut state = lock(&self.state);
        state.before -= 1;
        state.before == 0
    }

    /// Runs the work, which nothing stands before any more, on this thread, and returns what may run now.
    pub(super) fn run(&self) -> Vec<Arc<Self>> {
        let work = lock(&self.state).work.take();
        // Without work it was cancelled.
        let end = work.map_or(Ok(()), |work| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            caught.unwrap_or_else(|_| {
                log::error!("a panic in work of a stream; please report it");
                Err(ResultCode::InternalError)
            })
        });
        self.end(end)
    }

    fn end(&self, end: Result<(), ResultCode>) -> Vec<Arc<Self>> {
        if let Err(code) = end {
            for line in &self.lines {
                lock(&line.state).failure.get_or_insert(code);
            }
        }
        let mut state = lock(&self.state);
        state.end = Some(end);
        let after = std::mem::take(&mut state.after);
        drop(state);
        self.ended.notify_all();
        self.lines.iter().for_each(|line| line.ended(self));
        after.into_iter().filter(|node| node.let_go()).collect()
    }

    fn has_ended(&self) -> bool {
        lock(&self.state).end.is_some()
    }

    fn wait(&self) -> Result<(), ResultCode> {
        let mut state = lock(&self.state);
        loop {
            match state.end {
                Some(end) => return end,
                None => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The nodes, each of which follows the ends of its lines, become their ends.
pub(super) fn become_ends(nodes: &[Arc<Node>]) {
    let lines = || nodes.iter().flat_map(|node| node.lines.iter().map(move |line| (node, line)));
    for (_, line) in lines() {
        lock(&line.state).ends.clear();
    }
    for (node, line) in lines() {
        lock(&line.state).ends.push(Arc::clone(node));
    }
}

impl Line {
    pub(super) fn new() -> Self {
        process::notice_forks();
        Self { generation: process::generation(), state: Mutex::default() }
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == process::generation()
    }

    fn ends(&self) -> Vec<Arc<Node>> {
        lock(&self.state).ends.clone()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ends().iter().all(|end| end.has_ended())
    }

    pub(super) fn wait(&self) {
        for end in self.ends() {
            // The failure, if any, is with the line.
            let _ = end.wait();
        }
    }

    pub(super) fn failure(&self) -> Option<ResultCode> {
        lock(&self.state).failure
    }

    pub(super) fn take_failure(&self) -> Option<ResultCode> {
        lock(&self.state).failure.take()
    }

    /// The ends of the other line are ends of this one too.
    pub(super) fn join(&self, other: &Self) {
        // The ends of this very line, if that is the other, are known by then.
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
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return Err(Error::System { call: "eventfd", errno });
        }
        // SAFETY: the kernel just gave us this descriptor.
        state.event = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(fd)
    }

    /// A piece of work has ended.
    fn ended(&self, node: &Node) {
        let mut state = lock(&self.state);
        // The two would hold each other for ever.
        state.ends.retain(|end| !std::ptr::eq(&raw const **end, node));
        if let Some(event) = &state.event {
            let one = 1u64.to_ne_bytes();
            // It fails if the counter is full: then the descriptor is readable as it is.
            // SAFETY: the bytes are alive.
            let _ = unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

impl Ticket {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self(node)
    }

    /// Drops the work if it has not begun. Its place in the order stays: what follows still waits for what was before.
    pub fn cancel(&self) {
        let work = lock(&self.0.state).work.take();
        // What its end does may ask for other locks.
        drop(work);
    }

    /// Whether the work has ended, or what it waited for after it was cancelled.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Returns when the work has ended.
    ///
    /// # Errors
    /// What it ended with.
    pub fn wait(&self) -> Result<(), ResultCode> {
        self.0.wait()
    }
}
