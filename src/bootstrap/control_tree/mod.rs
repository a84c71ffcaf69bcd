//! The control tree: the connections of a rank to its parent and its children, which stay open
//! after the bootstrap.
//!
//! A rank that fails sends its error through the tree before it closes its connections, so that
//! every rank names the rank at fault and not the neighbour from which it learnt of the failure. A
//! tree that failed stays failed.
//!
//! | file | purpose |
//! |---|---|
//! | `mod` | the connections, and reading them during the bootstrap |
//! | `exchange` | exchanges: every rank gives bytes and gets those of all |
//! | `gathered` | the items that an exchange has collected |
//! | `events` | what the control plane does with the tree after the bootstrap |

mod events;
mod exchange;
mod gathered;

use std::time::{Duration, Instant};

use super::abort::{self, AbortSignal};
use super::error::BootstrapError;
use super::frame::ControlFrame;
use super::frame_stream::{FrameStream, StreamEnd, close_gracefully};
use super::items::ITEM_HEADER;
use super::poll;
use super::rank_set::RankSet;
use super::traffic::ControlTraffic;
use super::tree_shape::{children, parent};
pub(crate) use events::TreeEvent;
pub(crate) use exchange::TreeExchange;

/// Most bytes that one rank gives to one exchange.
pub const MOST_ITEM: usize = 64 << 10;
/// Most bytes of the items of all ranks in one exchange.
const MOST_ITEMS: usize = 1 << 30;
/// How long a failing rank waits for its neighbours to read its error.
const FAILURE_SEND_TIME: Duration = Duration::from_millis(500);

/// The part of the control tree at one rank.
pub struct ControlTree {
    rank: u32,
    nranks: u32,
    /// The connection to the parent.
    above: Option<FrameStream>,
    /// During the bootstrap, the roots to which rank 0 is still connected: they send statuses and
    /// verdicts.
    roots: Vec<FrameStream>,
    /// The connections to the children.
    below: Vec<TreeChild>,
    /// The number of the next exchange.
    sequence: u32,
    /// The items of all ranks that came from the parent for that exchange.
    down: Option<Vec<u8>>,
    /// The error with which the tree failed.
    broken: Option<BootstrapError>,
    /// Control messages that came during an exchange, with their senders.
    messages: Vec<(u32, Vec<u8>)>,
    /// The traffic of connections that are closed.
    closed_traffic: ControlTraffic,
    /// Ends [`all_gather`](Self::all_gather).
    abort: Option<AbortSignal>,
}

struct TreeChild {
    rank: u32,
    connection: FrameStream,
    /// The number of an exchange and the items that the child sent for it.
    up: Option<(u32, Vec<u8>)>,
}

impl ControlTree {
    /// A tree without connections, which is complete only if there is one rank.
    pub(super) fn new(rank: u32, nranks: u32, abort: Option<AbortSignal>) -> Self {
        Self {
            rank,
            nranks,
            above: None,
            roots: Vec::new(),
            below: Vec::new(),
            sequence: 0,
            down: None,
            broken: None,
            messages: Vec::new(),
            closed_traffic: ControlTraffic::default(),
            abort,
        }
    }

    /// Collects the bytes that every rank gives, in the order of the ranks. Every rank must call
    /// this, in the same order as other exchanges of this tree. Ranks may give different numbers of
    /// bytes, up to [`MOST_ITEM`].
    ///
    /// # Errors
    /// [`BootstrapError::PeerLost`] when the process of a rank ends, [`BootstrapError::TimedOut`]
    /// at the deadline of any rank, [`BootstrapError::Aborted`] when the user of any rank aborts.
    /// All ranks get the same error.
    pub fn all_gather(
        &mut self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, BootstrapError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if bytes.len() > MOST_ITEM {
            // The other ranks wait for this one, so they must learn that it fails.
            let error =
                BootstrapError::TooLong { rank: self.rank, len: bytes.len(), most: MOST_ITEM };
            return Err(self.fail(error));
        }
        self.exchange(bytes, deadline).map_err(|error| self.fail(error))
    }

    /// The connections and messages of this rank so far: to join, and for exchanges since.
    pub fn traffic(&self) -> ControlTraffic {
        let mut sum = self.closed_traffic;
        self.above.iter().chain(&self.roots).for_each(|above| sum.add(above));
        self.below.iter().for_each(|child| sum.add(&child.connection));
        sum
    }

    /// Counts the messages of a connection that is about to be closed.
    pub(super) fn count_closed(&mut self, connection: &FrameStream) {
        self.closed_traffic.add(connection);
    }

    /// Returns when every rank has called this.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn barrier(&mut self, deadline: Instant) -> Result<(), BootstrapError> {
        self.all_gather(&[], deadline).map(drop)
    }

    fn exchange(
        &mut self,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, BootstrapError> {
        let mut exchange = self.begin_exchange(bytes);
        let mut whole = None;
        // Frames that came together with the last exchange do not make the sockets ready again.
        self.read_frames(false)?;
        loop {
            if whole.is_none() {
                whole = self.advance_exchange(&mut exchange)?;
            }
            let flushed = self.below.iter().all(|child| child.connection.is_flushed());
            if let Some(whole) = whole.take_if(|_| flushed) {
                return Ok(whole);
            }
            abort::check(self.abort.as_ref(), self.rank)?;
            if Instant::now() >= deadline {
                return Err(self.exchange_timeout(&exchange));
            }
            let mut fds = Vec::new();
            self.poll_fds(&mut fds);
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            poll::wait(&mut fds, deadline);
            self.read_frames(whole.is_some())?;
        }
    }

    /// Appends the entries with which to poll the connections.
    pub(crate) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        fds.extend(self.above.iter().chain(&self.roots).map(FrameStream::poll_fd));
        fds.extend(self.below.iter().map(|child| child.connection.poll_fd()));
    }

    /// Reads the frames that have come from all neighbours. If `done`, the exchange needs nothing
    /// more from them, so that the end of a connection is no failure.
    pub(super) fn read_frames(&mut self, done: bool) -> Result<(), BootstrapError> {
        if let Some(mut above) = self.above.take() {
            above.fill();
            above.flush();
            let result = self.read_frames_of_parent(&mut above, done);
            self.above = Some(above);
            result?;
        }
        self.read_frames_of_roots(done)?;
        for at in 0..self.below.len() {
            let child = &mut self.below[at];
            child.connection.fill();
            child.connection.flush();
            let rank = child.rank;
            loop {
                match self.below[at].connection.next() {
                    Ok(Some(ControlFrame::Up { sequence, items }))
                        if self.below[at].up.is_none() =>
                    {
                        self.below[at].up = Some((sequence, items));
                    }
                    Ok(Some(ControlFrame::Verdict(verdict))) => return Err(verdict),
                    Ok(Some(ControlFrame::Message(bytes))) => self.messages.push((rank, bytes)),
                    Ok(None) => break,
                    // The child has what it needs. The next exchange will notice that it is gone.
                    Err(StreamEnd::Closed) if done => break,
                    Err(StreamEnd::Closed) => {
                        return Err(BootstrapError::PeerLost { rank, seen_by: self.rank });
                    }
                    Ok(Some(_)) | Err(StreamEnd::Malformed) => {
                        return Err(self.malformed("a frame", "child"));
                    }
                }
            }
        }
        Ok(())
    }

    fn read_frames_of_roots(&mut self, done: bool) -> Result<(), BootstrapError> {
        for at in 0..self.roots.len() {
            let root = &mut self.roots[at];
            root.fill();
            root.flush();
            loop {
                match self.roots[at].next() {
                    Ok(Some(ControlFrame::Status { missing, waited })) => {
                        self.report_missing(&missing, waited)
                    }
                    Ok(Some(ControlFrame::Verdict(verdict))) => return Err(verdict),
                    Ok(None) => break,
                    Err(StreamEnd::Closed) if done => break,
                    Err(StreamEnd::Closed) => {
                        return Err(self.roots[at].peer().map_or_else(
                            || self.malformed("its end", "root"),
                            |address| BootstrapError::RootLost { rank: self.rank, address },
                        ));
                    }
                    Ok(Some(_)) | Err(StreamEnd::Malformed) => {
                        return Err(self.malformed("a frame", "root"));
                    }
                }
            }
        }
        Ok(())
    }

    fn read_frames_of_parent(
        &mut self,
        above: &mut FrameStream,
        done: bool,
    ) -> Result<(), BootstrapError> {
        loop {
            match above.next() {
                Ok(Some(ControlFrame::Status { missing, waited })) => {
                    self.report_missing(&missing, waited)
                }
                Ok(Some(ControlFrame::Verdict(verdict))) => return Err(verdict),
                Ok(Some(ControlFrame::Message(bytes))) => {
                    self.messages.extend(parent(self.rank).map(|rank| (rank, bytes)));
                }
                Ok(Some(ControlFrame::Down { sequence, items }))
                    if sequence == self.sequence && self.down.is_none() && self.rank > 0 =>
                {
                    self.down = Some(items);
                    // Frames after it belong to a later exchange.
                    return Ok(());
                }
                Ok(None) => return Ok(()),
                Err(StreamEnd::Closed) if done || self.down.is_some() => return Ok(()),
                Err(StreamEnd::Closed) => {
                    let rank = parent(self.rank).unwrap_or_default();
                    return Err(BootstrapError::PeerLost { rank, seen_by: self.rank });
                }
                Ok(Some(_)) | Err(StreamEnd::Malformed) => {
                    return Err(self.malformed("a frame", "parent"));
                }
            }
        }
    }

    /// Logs which ranks are missing, and passes that on to the children.
    pub(super) fn report_missing(&mut self, missing: &RankSet, waited: Duration) {
        log::warn!(
            "rank {} has waited {:.0} s for {} of {} ranks to join: {missing}",
            self.rank,
            waited.as_secs_f64(),
            missing.len(),
            self.nranks
        );
        let frame = ControlFrame::Status { missing: missing.clone(), waited };
        for child in &mut self.below {
            child.connection.send(&frame);
        }
    }

    /// Sets the connection to the parent.
    pub(super) fn set_parent(&mut self, mut connection: FrameStream) {
        connection.set_most_items(self.most_items());
        self.above = Some(connection);
    }

    /// Sets the roots to which rank 0 stays connected.
    pub(super) fn set_roots(&mut self, roots: Vec<FrameStream>) {
        self.roots = roots;
    }

    /// Takes the roots to which rank 0 is connected.
    pub(super) fn take_roots(&mut self) -> Vec<FrameStream> {
        std::mem::take(&mut self.roots)
    }

    /// Adds the connection to a child, or replaces it if the child connected again.
    pub(super) fn add_child(&mut self, rank: u32, mut connection: FrameStream) {
        connection.set_most_items(self.most_items());
        if let Some(at) = self.below.iter().position(|child| child.rank == rank) {
            let old = self.below.swap_remove(at);
            self.count_closed(&old.connection);
        }
        self.below.push(TreeChild { rank, connection, up: None });
    }

    /// The children that have not connected.
    pub(super) fn missing_children(&self) -> impl Iterator<Item = u32> {
        children(self.rank, self.nranks)
            .filter(|&rank| self.below.iter().all(|child| child.rank != rank))
    }

    /// Tells the other ranks that this rank cannot go on, for a reason outside of the tree.
    pub(crate) fn give_up(&mut self, why: String) {
        if self.broken.is_none() {
            self.fail(BootstrapError::PeerFailed { rank: self.rank, why });
        }
    }

    fn fail(&mut self, error: BootstrapError) -> BootstrapError {
        self.fail_with(error, std::iter::empty())
    }

    /// Sends the error to the neighbours and to `others`, closes all connections, and returns the
    /// error. While this rank is connected to roots they are included, because they inform ranks
    /// that have no neighbours yet.
    pub(super) fn fail_with(
        &mut self,
        error: BootstrapError,
        others: impl IntoIterator<Item = FrameStream>,
    ) -> BootstrapError {
        let verdict = error.for_others(self.rank);
        let mut neighbours: Vec<FrameStream> =
            self.below.drain(..).map(|child| child.connection).collect();
        let roots = self.take_roots();
        neighbours.extend(self.above.take().into_iter().chain(roots).chain(others));
        for neighbour in &mut neighbours {
            neighbour.send(&ControlFrame::Verdict(verdict.clone()));
        }
        close_gracefully(neighbours.iter_mut(), Instant::now() + FAILURE_SEND_TIME);
        self.broken = Some(error.clone());
        error
    }

    /// Most bytes of the items in a frame.
    fn most_items(&self) -> usize {
        (self.nranks as usize).saturating_mul(ITEM_HEADER + MOST_ITEM).min(MOST_ITEMS)
    }

    /// The error of a frame that breaks the protocol.
    fn malformed(&self, what: &'static str, from: &str) -> BootstrapError {
        BootstrapError::Protocol { rank: self.rank, peer: format!("its {from}"), what }
    }
}
