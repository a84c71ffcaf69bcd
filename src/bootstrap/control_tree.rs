//! The control tree at one rank: its connections to its parent and its children, which stay open
//! after the bootstrap, and the state machine that decides what is sent over them.
//!
//! During the bootstrap the thread that joins drives the tree, and waits. Afterwards the service
//! thread of the control plane drives it, and never waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use maypole_control::activity::{Activity, RecorderSnapshot};
use maypole_control::communicator::{
    CommunicatorCore, ControlInput, ControlOutput, ControlTiming, DeviceProgress, LocalFacts,
    ProcessName, ProcessState,
};
use maypole_control::frame::{ControlFrame, MOST_ITEM, most_items};
use maypole_control::rank_set::RankSet;
use maypole_control::time::Time;
use maypole_control::verdict::Verdict;

use super::abort::{self, AbortSignal};
use super::error::BootstrapError;
use super::frame_stream::{FrameStream, StreamEnd, close_gracefully};
use super::poll;
use super::traffic::ControlTraffic;
use crate::clock;

/// The longest time between two looks at the connections during an exchange.
const LONGEST_POLL: Duration = Duration::from_secs(1);
/// How long a failing rank waits for its neighbours to read its error.
const FAILURE_SEND_TIME: Duration = Duration::from_millis(500);

/// The part of the control tree at one rank.
pub struct ControlTree {
    core: CommunicatorCore,
    connections: Vec<(u32, FrameStream)>,
    /// A connection was added, whose first frames may have come with its handshake.
    has_new: bool,
    /// Connections from which nothing more is expected, until they have sent what is left.
    closing: Vec<FrameStream>,
    /// The error with which the bootstrap failed at this rank.
    failed: Option<BootstrapError>,
    /// The traffic of connections that are closed.
    closed_traffic: ControlTraffic,
    /// Ends [`all_gather`](Self::all_gather).
    abort: Option<AbortSignal>,
}

/// The facts of a rank that has no communicator yet.
pub(super) struct NoFacts;

impl LocalFacts for NoFacts {
    fn snapshot(&self) -> RecorderSnapshot {
        RecorderSnapshot::default()
    }

    fn activity(&self) -> Activity {
        Activity::default()
    }

    fn process_state(&self, _: u32) -> Option<ProcessState> {
        None
    }

    fn process_name(&self, _: u32) -> ProcessName {
        ProcessName::default()
    }

    fn link_failure(&self) -> Option<Verdict> {
        None
    }

    fn has_left_link(&self, _: u32) -> bool {
        false
    }

    fn device(&self) -> Option<DeviceProgress> {
        None
    }
}

/// What the bootstrap does with the tree.
impl ControlTree {
    /// A tree without connections, which is complete only if there is one rank.
    pub(super) fn new(rank: u32, nranks: u32, abort: Option<AbortSignal>) -> Self {
        Self {
            core: CommunicatorCore::new(rank, nranks),
            connections: Vec::new(),
            has_new: false,
            closing: Vec::new(),
            failed: None,
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
        if let Some(error) = self.failure() {
            return Err(error);
        }
        let rank = self.rank();
        if bytes.len() > MOST_ITEM {
            // The other ranks wait for this one, so they must learn that it fails.
            return Err(self.fail(BootstrapError::TooLong {
                rank,
                len: bytes.len(),
                most: MOST_ITEM,
            }));
        }
        let deadline = clock::time_of(deadline);
        let mut outputs = VecDeque::new();
        let exchange = ControlInput::Exchange { bytes: bytes.to_vec(), deadline };
        self.handle(exchange, &NoFacts, &mut outputs);
        let mut result = None;
        loop {
            while let Some(output) = outputs.pop_front() {
                match output {
                    ControlOutput::Exchanged(Ok(whole)) => result = Some(whole),
                    other => log_missing(rank, self.nranks(), &other),
                }
            }
            if let Some(whole) = result.take_if(|_| self.is_flushed()) {
                return Ok(whole);
            }
            if result.is_none() {
                if let Some(error) = self.failure() {
                    return Err(self.fail(error));
                }
                abort::check(self.abort.as_ref(), rank).map_err(|error| self.fail(error))?;
            }
            let mut fds = Vec::new();
            self.poll_fds(&mut fds);
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            poll::wait(&mut fds, self.wake().unwrap_or_else(|| Instant::now() + LONGEST_POLL));
            self.read(&NoFacts, &mut outputs);
        }
    }

    /// The connections and messages of this rank so far: to join, and for exchanges since.
    pub fn traffic(&self) -> ControlTraffic {
        let mut sum = self.closed_traffic;
        let connections = self.connections.iter().map(|(_, connection)| connection);
        connections.for_each(|it| sum.add(it));
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

    /// Logs which ranks are missing, and passes that on to the children.
    pub(super) fn report_missing(&mut self, ranks: RankSet, waited: Duration) {
        self.core.report_missing(ranks, waited);
        let mut outputs = VecDeque::new();
        self.carry_out(&mut outputs);
        outputs.iter().for_each(|output| log_missing(self.rank(), self.nranks(), output));
    }

    /// Adds the connection to a neighbour, or replaces it if the neighbour connected again.
    pub(super) fn add_neighbour(&mut self, rank: u32, mut connection: FrameStream) {
        connection.set_most_items(most_items(self.nranks()));
        if let Some(at) = self.connections.iter().position(|(other, _)| *other == rank) {
            let (_, old) = self.connections.swap_remove(at);
            self.count_closed(&old);
        }
        self.connections.push((rank, connection));
        self.has_new = true;
        self.core.add_neighbour(rank);
    }

    /// Whether everything that was sent has gone out.
    pub(super) fn is_flushed(&self) -> bool {
        self.connections.iter().all(|(_, connection)| connection.is_flushed())
    }

    /// Tells the other ranks that this rank cannot go on, for a reason outside of the tree.
    pub(crate) fn give_up(&mut self, why: String) {
        if self.failed.is_none() {
            self.fail(BootstrapError::PeerFailed { rank: self.rank(), why });
        }
    }

    fn fail(&mut self, error: BootstrapError) -> BootstrapError {
        self.fail_with(error, std::iter::empty())
    }

    /// Sends the error to the neighbours and to `others`, closes all connections, and returns the
    /// error. The roots to which this rank is connected must be among the others, because they
    /// inform ranks that have no neighbours yet.
    pub(super) fn fail_with(
        &mut self,
        error: BootstrapError,
        others: impl IntoIterator<Item = FrameStream>,
    ) -> BootstrapError {
        let verdict = error.verdict(self.rank());
        let decide = ControlInput::Decide(verdict.clone());
        self.handle(decide, &NoFacts, &mut VecDeque::new());
        let mut informed: Vec<FrameStream> = others.into_iter().collect();
        informed.iter_mut().for_each(|it| it.send(&ControlFrame::Verdict(verdict.clone())));
        informed.extend(self.connections.drain(..).map(|(_, connection)| connection));
        informed.append(&mut self.closing);
        close_gracefully(informed.iter_mut(), Instant::now() + FAILURE_SEND_TIME);
        self.failed = Some(error.clone());
        error
    }

    /// The error with which the tree has failed.
    fn failure(&self) -> Option<BootstrapError> {
        let verdict = || self.core.verdict().cloned();
        self.failed.clone().or_else(|| Some(BootstrapError::of(verdict()?, self.rank())))
    }
}

/// What the control plane does with the tree.
impl ControlTree {
    /// This rank.
    pub(crate) fn rank(&self) -> u32 {
        self.core.rank()
    }

    /// The number of ranks.
    pub(crate) fn nranks(&self) -> u32 {
        self.core.nranks()
    }

    /// The ranks to which a connection is open.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = u32> {
        self.connections.iter().map(|(rank, _)| *rank)
    }

    /// Begins to watch the calls of this rank, with these times.
    pub(crate) fn start_service(&mut self, timing: ControlTiming) {
        self.core.start_service(timing, clock::now());
    }

    /// Makes the kernel notice when the host of this neighbour is gone.
    pub(crate) fn enable_keep_alive(&self, neighbour: u32) {
        let connections = self.connections.iter().filter(|(rank, _)| *rank == neighbour);
        connections.for_each(|(_, connection)| connection.enable_keep_alive());
    }

    /// Ends connections to hosts that are gone, which the next [`read`](Self::read) then sees.
    pub(crate) fn end_connections_to_lost_hosts(&mut self) {
        self.connections.iter_mut().for_each(|(_, connection)| connection.end_if_host_is_gone());
    }

    /// Appends the entries with which to poll the connections.
    pub(crate) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        fds.extend(self.connections.iter().map(|(_, connection)| connection.poll_fd()));
        fds.extend(self.closing.iter().map(FrameStream::poll_fd));
    }

    /// When [`read`](Self::read) must be called at the latest.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.core.wake().map(clock::instant_of)
    }

    /// Why the communicator has ended, if it has.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.core.verdict()
    }

    /// Passes an input to the state machine. Frames are sent here; the other outputs are appended
    /// to `outputs`.
    pub(crate) fn handle(
        &mut self,
        input: ControlInput,
        facts: &impl LocalFacts,
        outputs: &mut VecDeque<ControlOutput>,
    ) {
        self.handle_at(clock::now(), input, facts, outputs);
    }

    fn handle_at(
        &mut self,
        now: Time,
        input: ControlInput,
        facts: &impl LocalFacts,
        outputs: &mut VecDeque<ControlOutput>,
    ) {
        self.core.handle(now, input, facts);
        self.carry_out(outputs);
    }

    /// Reads what has come from the neighbours, in the order in which each has sent it, and does
    /// what is due.
    pub(crate) fn read(&mut self, facts: &impl LocalFacts, outputs: &mut VecDeque<ControlOutput>) {
        // This process may be stopped at any point: what came before this time is read below.
        let now = clock::now();
        let connections = self.connections.iter();
        let mut fds: Vec<_> = connections.map(|(_, connection)| connection.poll_fd()).collect();
        poll::poll_now(&mut fds);
        let ready = self.neighbours().zip(&fds);
        // An ended connection is not polled, and may hold frames that were not taken.
        let ready = ready.filter(|(_, fd)| fd.revents != 0 || fd.fd < 0 || self.has_new);
        let ready: Vec<u32> = ready.map(|(rank, _)| rank).collect();
        self.has_new = false;
        for rank in ready {
            // Handling the frames of one neighbour may close the connection to another.
            let Some(connection) = self.connection(rank) else { continue };
            let (frames, end) = connection.take_all();
            for frame in frames {
                self.handle_at(now, ControlInput::Frame(rank, frame), facts, outputs);
            }
            match end {
                None => {}
                Some(StreamEnd::Malformed) => {
                    self.handle_at(now, ControlInput::Malformed(rank), facts, outputs);
                }
                Some(StreamEnd::Closed) => {
                    self.handle_at(now, ControlInput::Closed(rank), facts, outputs);
                }
            }
        }
        for connection in &mut self.closing {
            connection.flush();
            connection.discard();
        }
        self.closing.retain(|connection| !connection.is_flushed() && !connection.has_ended());
        self.handle_at(now, ControlInput::Tick, facts, outputs);
    }

    /// Closes all connections; what was sent still arrives.
    pub(crate) fn close(&mut self) {
        let connections = self.connections.drain(..).map(|(_, connection)| connection);
        for mut connection in connections.chain(self.closing.drain(..)) {
            connection.flush();
            connection.shut_down_sending();
            // Closing a socket that has unread data would discard what was sent.
            connection.discard();
        }
    }

    /// Does what the state machine wants to be done with the connections.
    fn carry_out(&mut self, outputs: &mut VecDeque<ControlOutput>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                ControlOutput::Send(rank, frame) => {
                    if let Some(connection) = self.connection(rank) {
                        connection.send(&frame);
                    }
                }
                ControlOutput::Close(rank) => {
                    let at = self.connections.iter().position(|(other, _)| *other == rank);
                    let closed = at.map(|at| self.connections.swap_remove(at).1);
                    closed.iter().for_each(|connection| self.closed_traffic.add(connection));
                    self.closing.extend(closed.filter(|it| !it.is_flushed() && !it.has_ended()));
                }
                other => outputs.push_back(other),
            }
        }
    }

    fn connection(&mut self, neighbour: u32) -> Option<&mut FrameStream> {
        let mut connections = self.connections.iter_mut();
        connections.find(|(rank, _)| *rank == neighbour).map(|(_, connection)| connection)
    }
}

/// Logs which ranks have not joined, if the output says so.
pub(super) fn log_missing(rank: u32, nranks: u32, output: &ControlOutput) {
    if let ControlOutput::Missing(ranks, waited) = output {
        log::warn!(
            "rank {rank} has waited {:.0} s for {} of {nranks} ranks to join: {ranks}",
            waited.as_secs_f64(),
            ranks.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outputs of rank 0 of 3 after rank 1 has told the death of each of these ranks.
    fn told_dead(ranks: impl IntoIterator<Item = u32>) -> Vec<ControlOutput> {
        let mut core = CommunicatorCore::new(0, 3);
        core.add_neighbour(1);
        core.add_neighbour(2);
        for rank in ranks {
            let frame = ControlFrame::Verdict(Verdict::Dead { rank, seen_by: 1 });
            core.handle(clock::now(), ControlInput::Frame(1, frame), &NoFacts);
        }
        std::iter::from_fn(|| core.poll_output()).collect()
    }

    #[test]
    fn a_rank_that_tells_of_ranks_that_do_not_exist_is_told_as_the_fault() {
        let outputs = told_dead(3..1000);
        let ended = outputs.iter().filter_map(|output| match output {
            ControlOutput::Ended(verdict) => Some(verdict),
            _ => None,
        });
        let ended: Vec<_> = ended.collect();
        assert!(matches!(ended[..], [Verdict::Failed { rank: 1, .. }]), "{ended:?}");
        let real = told_dead([2]);
        let dead = ControlOutput::Ended(Verdict::Dead { rank: 2, seen_by: 1 });
        assert!(real.contains(&dead), "{real:?}");
    }
}
