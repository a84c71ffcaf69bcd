//! Host streams: work that runs in order and asynchronously, as on a CUDA stream.
//!
//! A work is issued on one or more streams. It begins when all work issued on them before has
//! ended. So streams are not queues, but the ends of chains in one graph (`graph`). All edges of
//! the graph lead from work that was issued earlier to work that was issued later, so it has no
//! cycles, whichever streams are shared. Each work that is ready runs at once on a thread (`pool`),
//! because any two of them may be ranks that wait for each other.
//!
//! The C ABI uses one more stream for each communicator, on which all its calls are issued, so that
//! they keep their order on whatever streams they are.
//!
//! The failure of a work stays with its streams until the user synchronises. Later work runs all
//! the same, because peers wait for it.
//!
//! A child process made by fork has none of the threads, so the streams that it inherited refuse
//! everything.

mod graph;
mod on_threads;
mod pool;

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::error::{Error, ResultCode};
#[doc(hidden)]
pub use crate::process::PerProcess;
use graph::{StreamChain, WorkNode};
pub use graph::{Work, WorkTicket};
#[doc(hidden)]
pub use on_threads::{behind, side_by_side};

/// A host stream. Its clones are the same stream. Issued work runs even if all clones are dropped.
///
/// ```
/// use maypole::stream::Stream;
///
/// let stream = Stream::new();
/// let (sender, receiver) = std::sync::mpsc::channel();
/// stream.run(Box::new(move || {
///     sender.send(42).expect("the receiver exists");
///     Ok(())
/// }))?;
/// stream.synchronize()?;
/// assert_eq!(receiver.try_recv(), Ok(42));
/// # Ok::<(), maypole::Error>(())
/// ```
#[derive(Clone)]
pub struct Stream {
    chain: Arc<StreamChain>,
}

/// A work and the streams on which it is issued.
pub struct Issue {
    /// The work.
    pub work: Work,
    /// The streams; a stream named twice counts once.
    pub on: Vec<Stream>,
}

/// Issues several works at once. On a stream that they share they do not wait for each other, and
/// work that is issued later waits for all of them. The tickets have the order of `batch`.
///
/// # Errors
/// A stream was made before this process was forked from its parent.
pub fn issue(batch: Vec<Issue>) -> Result<Vec<WorkTicket>, Error> {
    for issue in &batch {
        issue.on.iter().try_for_each(Stream::check_fork)?;
    }
    let pool = pool::of_this_process();
    // The lock for the order of issue. Without it two threads could issue two works on two streams
    // in different orders, and each work would wait for the other.
    let order = pool.order();
    let nodes: Vec<Arc<WorkNode>> = batch
        .into_iter()
        .map(|Issue { work, on }| {
            let mut chains: Vec<Arc<StreamChain>> = Vec::with_capacity(on.len());
            for stream in on {
                if !chains.iter().any(|chain| Arc::ptr_eq(chain, &stream.chain)) {
                    chains.push(stream.chain);
                }
            }
            WorkNode::new(work, chains)
        })
        .collect();
    for node in &nodes {
        node.follow_chains();
    }
    graph::become_ends(&nodes);
    drop(order);
    for node in &nodes {
        pool.start(node);
    }
    Ok(nodes.into_iter().map(WorkTicket::new).collect())
}

/// Whether this thread is running a work. If so, it must not wait for a stream.
#[doc(hidden)]
pub fn is_at_work() -> bool {
    pool::is_at_work()
}

/// Ends the threads that are kept for later work: idle threads now, the others after their work.
/// For programs that will issue no more work.
#[doc(hidden)]
pub fn dismiss() {
    pool::of_this_process().dismiss();
}

impl Stream {
    /// Makes a stream.
    #[expect(clippy::new_without_default, reason = "making a stream should be explicit")]
    pub fn new() -> Self {
        Self { chain: Arc::new(StreamChain::new()) }
    }

    /// Issues a work on this stream only.
    ///
    /// # Errors
    /// As [`issue`].
    pub fn run(&self, work: Work) -> Result<WorkTicket, Error> {
        let tickets = issue(vec![Issue { work, on: vec![self.clone()] }])?;
        tickets.into_iter().next().ok_or_else(|| Error::internal("work without a ticket"))
    }

    /// Waits until all work issued on the stream so far has ended.
    ///
    /// # Errors
    /// [`Error::Failed`]: the first failure since the last synchronisation.
    /// [`Error::InvalidUsage`]: this thread is running work of a stream, or the stream was made
    /// before a fork.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.check_fork()?;
        if is_at_work() {
            return Err(Error::InvalidUsage {
                what: "work of a stream must not wait for a stream, since it could wait for itself"
                    .into(),
            });
        }
        self.chain.wait();
        self.chain.take_failure().map_or(Ok(()), |code| Err(Error::Failed { code }))
    }

    /// Whether all work issued on the stream has ended. A failure stays with the stream until the
    /// user synchronises.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize).
    pub fn is_idle(&self) -> Result<bool, Error> {
        self.check_fork()?;
        let idle = self.chain.is_idle();
        match self.chain.failure() {
            Some(code) if idle => Err(Error::Failed { code }),
            _ => Ok(idle),
        }
    }

    /// The first failure since the last synchronisation, if there was one.
    pub fn failure(&self) -> Option<ResultCode> {
        self.chain.failure()
    }

    /// Makes work that is issued on this stream from now on wait for the work issued on `other` so
    /// far.
    ///
    /// # Errors
    /// One of the streams was made before a fork.
    pub fn wait_for(&self, other: &Self) -> Result<(), Error> {
        self.check_fork()?;
        other.check_fork()?;
        let _order = pool::of_this_process().order();
        self.chain.join(&other.chain);
        Ok(())
    }

    /// A file descriptor that a program can poll. It becomes readable when a work ends; a read of
    /// eight bytes returns how many works have ended since the last read. Work that ended before
    /// the first call of this is not counted. The descriptor belongs to the stream.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn event_fd(&self) -> Result<RawFd, Error> {
        self.check_fork()?;
        self.chain.event_fd()
    }

    /// Checks that the stream was made in this process, not in a parent from which it was forked.
    ///
    /// # Errors
    /// [`Error::InvalidUsage`]: it was made in a parent.
    pub fn check_fork(&self) -> Result<(), Error> {
        if self.chain.is_of_this_process() {
            return Ok(());
        }
        Err(Error::InvalidUsage {
            what: "the stream was made before this process was forked and belongs to its parent; \
                   make a new one in this process"
                .into(),
        })
    }
}

#[cfg(test)]
mod tests;
