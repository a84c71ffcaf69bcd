//! Host streams: work that runs in order, behind the back of the thread that issued it, as on a CUDA stream.
//!
//! A piece of work is issued on one or more streams and begins when all that was issued on them before has ended. So streams are
//! no queues but the ends of chains in one graph (`graph`), whose edges all lead from what was issued earlier to what was
//! issued later: it has no circles, whatever streams have in common. Each piece that is ready runs at once on a
//! thread (`pool`), since any two of them may be ranks that wait for each other.
//!
//! A communicator is to the C ABI one more stream, on which all of its calls are issued: they keep the order of issue, on
//! however many streams.
//!
//! Work that fails leaves its result with its streams, where it stays until someone synchronises; what was issued
//! after it runs all the same, since peers wait for it.
//!
//! After a fork the child has none of the threads: streams that it inherited refuse everything.

mod graph;
mod pool;
mod side;

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::error::{Error, ResultCode};
pub use crate::process::PerProcess;
use graph::{Line, Node};
pub use graph::{Ticket, Work};
pub use side::{behind, side_by_side};

/// A stream. Its clones are the same stream; what was issued on it runs even if all of them are dropped.
///
/// ```
/// use maypole::stream::Stream;
///
/// let stream = Stream::new();
/// let (told, heard) = std::sync::mpsc::channel();
/// stream.run(Box::new(move || {
///     told.send(42).expect("someone listens");
///     Ok(())
/// }))?;
/// stream.synchronize()?;
/// assert_eq!(heard.try_recv(), Ok(42));
/// # Ok::<(), maypole::Error>(())
/// ```
#[derive(Clone)]
pub struct Stream {
    line: Arc<Line>,
}

/// Work and the streams that it is issued on.
pub struct Issue {
    /// What is to be done.
    pub work: Work,
    /// Where; one stream named twice counts once.
    pub on: Vec<Stream>,
}

/// Issues several pieces of work at once: on a stream that they share they do not wait for each other, and what is issued there
/// later waits for all of them. The tickets are in their order.
///
/// # Errors
/// If a stream was made before this process was forked from its parent.
pub fn issue(batch: Vec<Issue>) -> Result<Vec<Ticket>, Error> {
    for issue in &batch {
        issue.on.iter().try_for_each(Stream::check_fork)?;
    }
    let pool = pool::here();
    // The order of issue: without it two threads could put two pieces on two streams in different orders, and each wait for the other.
    let order = pool.order();
    let nodes: Vec<Arc<Node>> = batch
        .into_iter()
        .map(|Issue { work, on }| {
            let mut lines: Vec<Arc<Line>> = Vec::with_capacity(on.len());
            for stream in on {
                if !lines.iter().any(|line| Arc::ptr_eq(line, &stream.line)) {
                    lines.push(stream.line);
                }
            }
            Node::new(work, lines)
        })
        .collect();
    for node in &nodes {
        node.follow_lines();
    }
    graph::become_ends(&nodes);
    drop(order);
    for node in &nodes {
        node.start(pool);
    }
    Ok(nodes.into_iter().map(Ticket::new).collect())
}

/// True on a thread that is running a piece of work: it must not wait for a stream.
pub fn is_at_work() -> bool {
    pool::is_at_work()
}

/// Threads that are kept for work to come end now, and those at work when it is done. For when nothing is left to be done.
pub fn dismiss() {
    pool::here().dismiss();
}

impl Stream {
    /// A stream on which nothing was issued.
    #[expect(clippy::new_without_default, reason = "a stream is made on purpose")]
    pub fn new() -> Self {
        Self { line: Arc::new(Line::new()) }
    }

    /// Issues a piece of work on this stream alone.
    ///
    /// # Errors
    /// As [`issue`].
    pub fn run(&self, work: Work) -> Result<Ticket, Error> {
        let tickets = issue(vec![Issue { work, on: vec![self.clone()] }])?;
        tickets.into_iter().next().ok_or_else(|| Error::internal("work without a ticket"))
    }

    /// Returns when all that was issued on the stream before has ended, with the first failure since the last
    /// synchronisation.
    ///
    /// # Errors
    /// [`Error::Failed`]: that failure. [`Error::InvalidUsage`]: this thread is running work of a stream, or the stream was
    /// made before a fork.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.check_fork()?;
        if is_at_work() {
            return Err(Error::InvalidUsage {
                what: "work of a stream must not wait for a stream: it could be for itself".into(),
            });
        }
        self.line.wait();
        self.line.take_failure().map_or(Ok(()), |code| Err(Error::Failed { code }))
    }

    /// Whether all that was issued on the stream has ended. A failure stays for who synchronises.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize).
    pub fn is_idle(&self) -> Result<bool, Error> {
        self.check_fork()?;
        let idle = self.line.is_idle();
        match self.line.failure() {
            Some(code) if idle => Err(Error::Failed { code }),
            _ => Ok(idle),
        }
    }

    /// The first failure since the last synchronisation, if there was one.
    pub fn failure(&self) -> Option<ResultCode> {
        self.line.failure()
    }

    /// What is issued on this stream from now on waits for what was issued on `other` until now.
    ///
    /// # Errors
    /// If one of them was made before a fork.
    pub fn wait_for(&self, other: &Self) -> Result<(), Error> {
        self.check_fork()?;
        other.check_fork()?;
        let _order = pool::here().order();
        self.line.join(&other.line);
        Ok(())
    }

    /// A descriptor, of the stream, that a program can poll: readable after a piece of work has ended; a read of eight bytes gives
    /// how many have since the last one. Work that ended before the first call of this is not counted.
    ///
    /// # Errors
    /// If the system has no more descriptors.
    pub fn event_fd(&self) -> Result<RawFd, Error> {
        self.check_fork()?;
        self.line.event_fd()
    }

    /// Whether the stream was made in this process, and not in one that this one was forked from.
    ///
    /// # Errors
    /// [`Error::InvalidUsage`] if not.
    pub fn check_fork(&self) -> Result<(), Error> {
        if self.line.is_of_this_process() {
            return Ok(());
        }
        Err(Error::InvalidUsage {
            what: "the stream was made before this process was forked from its parent, to which it belongs; make a new one here".into(),
        })
    }
}

#[cfg(test)]
mod tests;
