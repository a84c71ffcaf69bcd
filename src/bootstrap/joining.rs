//! Runs a rank while it joins: connects the state machines of the join and of the control tree with
//! their sockets.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use maypole_control::bootstrap::joining::{
    GRACE, JoinCore, JoinFailure, JoinInput, JoinOutput, JoinPlan, LEAVE_TIME, RootVisit,
};
use maypole_control::communicator::{ControlInput, ControlOutput};
use maypole_control::frame::ControlFrame;
use maypole_control::listener_addresses::ListenerAddresses;
use maypole_control::time::Time;
use maypole_control::tree_shape::{children, parent};
use maypole_transport::noise::{Binding, Purpose};

use super::abort::AbortSignal;
use super::accept::HandshakeAcceptor;
use super::control_tree::{ControlTree, NoFacts, log_missing};
use super::dial::{DialOutcome, Dialer};
use super::error::BootstrapError;
use super::frame_stream::{FrameStream, SecureStream, StreamEnd, close_gracefully};
use super::id::UniqueIdContents;
use super::listener_address;
use super::multi_root::RootIds;
use super::options::Options;
use super::poll;
use crate::clock;

/// How long a rank that failed tries to reach a root, to which it is not connected, to report this.
const FAILURE_REACH_TIME: Duration = Duration::from_millis(500);
/// How long the report may take once the root is reached.
const FAILURE_SEND_TIME: Duration = Duration::from_secs(5);

/// A rank that is joining.
pub(super) struct JoiningRank<'a> {
    ids: &'a RootIds,
    rank: u32,
    nranks: u32,
    started: Instant,
    deadline: Instant,
    core: JoinCore,
    tree: ControlTree,
    /// The connections to roots, by their numbers.
    roots: BTreeMap<usize, FrameStream>,
    /// The address of a root that does not know the secret.
    other_id: Option<SocketAddr>,
    /// The connection to a root that is being made.
    root_dialer: Option<(usize, Dialer)>,
    /// The connection to the parent, while it is being made.
    parent_dialer: Option<Dialer>,
    /// Accepts the connections of the children.
    acceptor: HandshakeAcceptor,
    abort: Option<AbortSignal>,
    info: &'a [u8],
    /// The rank infos of all ranks, when they have come.
    infos: Option<Vec<Vec<u8>>>,
    has_joined: bool,
    failure: Option<BootstrapError>,
}

impl<'a> JoiningRank<'a> {
    /// Prepares to join with this rank info. The rank listens for its children from now on.
    pub(super) fn new(
        ids: &'a RootIds,
        rank: u32,
        nranks: u32,
        info: &'a [u8],
        options: &Options,
    ) -> Result<Self, BootstrapError> {
        let (listeners, listener) = if children(rank, nranks).next().is_some() {
            listener_address::listen()?
        } else {
            (Vec::new(), ListenerAddresses::default())
        };
        let visit = |root| {
            let UniqueIdContents { follows, fixed, .. } = ids.roots[root];
            RootVisit { root, share: ids.share(root), follows, appears_later: fixed }
        };
        let plan = JoinPlan {
            rank,
            nranks,
            visits: ids.visited_roots(rank, nranks).into_iter().map(visit).collect(),
            timeout: options.timeout,
            host: crate::logger::host_name().to_owned(),
            pid: std::process::id(),
            listener,
        };
        let started = Instant::now();
        Ok(Self {
            ids,
            rank,
            nranks,
            started,
            deadline: clock::after(options.timeout),
            core: JoinCore::new(clock::now(), plan),
            tree: ControlTree::new(rank, nranks, options.abort.clone()),
            roots: BTreeMap::new(),
            other_id: None,
            root_dialer: None,
            parent_dialer: None,
            acceptor: HandshakeAcceptor::new(listeners, ids.secret.clone(), Purpose::Tree, rank),
            abort: options.abort.clone(),
            info,
            infos: None,
            has_joined: false,
            failure: None,
        })
    }

    /// Registers at the roots, connects to parent and children, and exchanges rank infos.
    pub(super) fn run(mut self) -> Result<(Vec<Vec<u8>>, ControlTree), BootstrapError> {
        self.carry_out();
        loop {
            if let Some(error) = self.failure.take() {
                return Err(self.fail(error));
            }
            if let Some(infos) = self.infos.take_if(|_| self.has_joined && self.tree.is_flushed()) {
                log::debug!(
                    "rank {} joined {} ranks in {:?}",
                    self.rank,
                    self.nranks,
                    self.started.elapsed()
                );
                return Ok((infos, self.tree));
            }
            let mut fds = Vec::new();
            self.acceptor.poll_fds(&mut fds);
            let of_acceptor = fds.len();
            self.tree.poll_fds(&mut fds);
            fds.extend(self.roots.values().map(FrameStream::poll_fd));
            let root_dialer = self.root_dialer.as_ref().map(|(_, dialer)| dialer);
            let dialers: Vec<&Dialer> =
                root_dialer.into_iter().chain(&self.parent_dialer).collect();
            fds.extend(dialers.iter().map(|dialer| dialer.poll_fd()));
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            let wakes = [self.acceptor.wake(), self.tree.wake()];
            let wakes = wakes.into_iter().flatten().chain(dialers.iter().map(|it| it.wake()));
            let until = wakes.fold(clock::instant_of(self.core.wake()), Instant::min);
            // What came before this time is seen below, also if this process is stopped meanwhile.
            let now = clock::now();
            poll::wait(&mut fds, until);
            self.look(&fds[..of_acceptor], now);
            self.core.handle(now, JoinInput::Tick);
            self.carry_out();
        }
    }

    /// Looks at everything that may have changed since `now`, before it was waited.
    fn look(&mut self, of_acceptor: &[libc::pollfd], now: Time) {
        if self.abort.as_ref().is_some_and(AbortSignal::is_raised) {
            return self.handle(JoinInput::Abort);
        }
        self.advance_dialers();
        let (passed, _) = self.acceptor.advance(of_acceptor, now);
        for (binding, stream) in passed {
            self.add_child(binding, stream);
        }
        self.read_roots();
        let mut outputs = VecDeque::new();
        self.tree.read(&NoFacts, &mut outputs);
        self.take_tree_outputs(outputs);
    }

    /// Continues the connections that are being made.
    fn advance_dialers(&mut self) {
        if let Some((root, mut dialer)) = self.root_dialer.take() {
            match dialer.advance() {
                Ok(DialOutcome::Connected(stream)) => {
                    self.roots.insert(root, FrameStream::new(stream, 0));
                    self.handle(JoinInput::RootConnected(root));
                }
                Ok(DialOutcome::WrongId(address)) => {
                    self.other_id = Some(address);
                    self.root_dialer = Some((root, dialer));
                    self.handle(JoinInput::RootHasOtherId(root));
                }
                Ok(DialOutcome::NotYet) => {
                    let (reached, refused) = (dialer.has_reached(), dialer.is_refused());
                    self.root_dialer = Some((root, dialer));
                    if reached {
                        self.handle(JoinInput::RootReached(root));
                    }
                    if refused {
                        self.handle(JoinInput::RootRefused(root));
                    }
                }
                Err(error) => self.failure = Some(error),
            }
        }
        if let Some(mut dialer) = self.parent_dialer.take() {
            match dialer.advance() {
                Ok(DialOutcome::Connected(stream)) => {
                    let above = parent(self.rank).unwrap_or(0);
                    self.tree.add_neighbour(above, FrameStream::new(stream, 0));
                    self.handle(JoinInput::ParentConnected);
                }
                Ok(_) => self.parent_dialer = Some(dialer),
                Err(error) => self.failure = Some(error),
            }
        }
    }

    /// Adds a child whose handshake succeeded.
    fn add_child(&mut self, binding: Binding, stream: SecureStream) {
        let is_child = children(self.rank, self.nranks).any(|child| child == binding.from);
        if is_child && binding.nranks == self.nranks {
            self.tree.add_neighbour(binding.from, FrameStream::new(stream, 0));
            self.handle(JoinInput::ChildConnected(binding.from));
        } else {
            log::warn!(
                "rank {} connected to rank {}, which is not its parent",
                binding.from,
                self.rank
            );
        }
    }

    /// Reads the frames of the roots.
    fn read_roots(&mut self) {
        let roots: Vec<usize> = self.roots.keys().copied().collect();
        for root in roots {
            // Handling the frames of one root may close the connection to another.
            let Some(stream) = self.roots.get_mut(&root) else { continue };
            let (frames, end) = stream.take_all();
            frames.into_iter().for_each(|frame| self.handle(JoinInput::RootFrame(root, frame)));
            if let Some(end) = end {
                self.handle(match end {
                    StreamEnd::Closed => JoinInput::RootClosed(root),
                    StreamEnd::Malformed => JoinInput::RootMalformed(root),
                });
                self.close_root(root);
            }
        }
    }

    fn close_root(&mut self, root: usize) {
        if let Some(stream) = self.roots.remove(&root) {
            self.tree.count_closed(&stream);
        }
    }

    /// Passes an input to the state machine, and does what it wants.
    fn handle(&mut self, input: JoinInput) {
        self.core.handle(clock::now(), input);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                JoinOutput::DialRoot(root) => {
                    let UniqueIdContents { secret, root: listener, .. } = &self.ids.roots[root];
                    let addresses = listener_address::reachable_here(listener);
                    let binding = self.binding(Purpose::Root, 0);
                    let dialer = Dialer::new(secret.clone(), binding, addresses);
                    self.root_dialer = Some((root, dialer));
                }
                JoinOutput::SendRoot(root, frame) => {
                    if let Some(stream) = self.roots.get_mut(&root) {
                        stream.send(&frame);
                    }
                }
                JoinOutput::FinishRoot(root) => self.finish_root(root),
                JoinOutput::DialParent(listener) => {
                    let above = parent(self.rank).unwrap_or(0);
                    let binding = self.binding(Purpose::Tree, above);
                    let addresses = listener_address::reachable_here(&listener);
                    let secret = self.ids.secret.clone();
                    self.parent_dialer = Some(Dialer::new(secret, binding, addresses));
                }
                JoinOutput::Missing(ranks, waited) => self.tree.report_missing(ranks, waited),
                JoinOutput::TreeComplete => self.begin_gathering(),
                JoinOutput::Failed(failure) => {
                    let error = self.error_of(failure);
                    self.failure.get_or_insert(error);
                }
                JoinOutput::Joined => self.has_joined = true,
            }
        }
    }

    /// Begins to gather the rank infos of all ranks.
    fn begin_gathering(&mut self) {
        self.acceptor.close();
        let deadline = clock::time_of(self.deadline + GRACE);
        let exchange = ControlInput::Exchange { bytes: self.info.to_vec(), deadline };
        let mut outputs = VecDeque::new();
        self.tree.handle(exchange, &NoFacts, &mut outputs);
        self.take_tree_outputs(outputs);
    }

    /// Continues the join with what the control tree did.
    fn take_tree_outputs(&mut self, outputs: VecDeque<ControlOutput>) {
        for output in outputs {
            match output {
                ControlOutput::Exchanged(Ok(infos)) => {
                    self.infos = Some(infos);
                    self.handle(JoinInput::Gathered);
                }
                ControlOutput::Ended(verdict) => self.handle(JoinInput::TreeFailed(verdict)),
                other => log_missing(self.rank, self.nranks, &other),
            }
        }
    }

    /// Ends the connection to a root after what was sent. Rank 0 waits a short time until the root
    /// has read it: the root may be in this process, which may end.
    fn finish_root(&mut self, root: usize) {
        let Some(stream) = self.roots.get_mut(&root) else { return };
        stream.shut_down_sending();
        // A root that is only informed says by closing the connection that it has read it.
        if self.core.connected_roots().contains(&root) {
            return;
        }
        if self.rank == 0 {
            close_gracefully(std::iter::once(stream), Instant::now() + LEAVE_TIME);
        }
        self.close_root(root);
    }

    /// The binding of a connection that this rank makes.
    fn binding(&self, purpose: Purpose, to: u32) -> Binding {
        Binding { purpose, from: self.rank, to, nranks: self.nranks, stream: 0 }
    }

    /// Ends the attempt: every rank that waits for this one learns why. A root that could not be
    /// reached is not tried again.
    fn fail(mut self, error: BootstrapError) -> BootstrapError {
        log::debug!("rank {} fails to join: {:?}", self.rank, self.core);
        let is_registered = self.core.is_registered();
        let mut informed: Vec<usize> = self.roots.keys().copied().collect();
        if matches!(error, BootstrapError::RootUnreachable { .. } | BootstrapError::WrongId { .. })
        {
            informed.extend(self.root_dialer.take().map(|(root, _)| root));
        }
        // First, because the deadline of the ranks at these roots may be near.
        if !is_registered {
            report_failure(self.ids, &informed, self.rank, self.nranks, &error);
        }
        // The parent may just have accepted this rank.
        let parent = self.parent_dialer.take().and_then(Dialer::abandon);
        let parent = parent.map(|stream| FrameStream::new(stream, 0));
        let roots = std::mem::take(&mut self.roots).into_values();
        self.tree.fail_with(error, parent.into_iter().chain(roots))
    }

    fn error_of(&self, failure: JoinFailure) -> BootstrapError {
        let rank = self.rank;
        let first_address = |root: usize| {
            let stream = self.roots.get(&root).and_then(FrameStream::peer);
            stream.or_else(|| self.ids.roots[root].root.addresses.first().copied())
        };
        let protocol =
            |what| BootstrapError::Protocol { rank, peer: String::from("the root"), what };
        match failure {
            JoinFailure::Aborted => BootstrapError::Aborted { by: rank },
            JoinFailure::RootUnreachable(root) => {
                let addresses = listener_address::reachable_here(&self.ids.roots[root].root);
                let fixed = self.ids.roots[root].fixed;
                let text = |address: &SocketAddr| match address.ip().is_loopback() && fixed {
                    // The user gave a name, which /etc/hosts may map to 127.0.1.1.
                    true => format!("{address}, which is this host itself"),
                    false => address.to_string(),
                };
                let texts: Vec<String> = addresses.iter().map(text).collect();
                let last = self.root_dialer.as_ref().map(|(_, dialer)| dialer.last_error());
                BootstrapError::RootUnreachable {
                    rank,
                    addresses: texts.join(", "),
                    waited: self.started.elapsed(),
                    last: last.unwrap_or("no attempt").to_owned(),
                }
            }
            JoinFailure::RootHasOtherId(root) => {
                match self.other_id.or_else(|| first_address(root)) {
                    Some(address) => BootstrapError::WrongId { rank, address },
                    None => protocol("another secret"),
                }
            }
            JoinFailure::RootLost(root) => match first_address(root) {
                Some(address) => BootstrapError::RootLost { rank, address },
                None => protocol("its end"),
            },
            JoinFailure::RootProtocol(_) => protocol("a frame"),
            JoinFailure::Verdict(verdict) => BootstrapError::of(verdict, rank),
            JoinFailure::TimedOut { waiting_for, what, waited } => {
                BootstrapError::TimedOut { rank, waiting_for, what: what.to_owned(), waited }
            }
        }
    }
}

/// Tells the roots at which this rank registers that it will not come, except those in `informed`.
/// If the whole attempt has ended, that counts also for the ranks at roots that it only informs. A
/// failure of this rank alone may be that of a second process, and the first one has come there.
pub(super) fn report_failure(
    ids: &RootIds,
    informed: &[usize],
    rank: u32,
    nranks: u32,
    error: &BootstrapError,
) {
    for at in ids.visited_roots(rank, nranks) {
        let waits_for_it = rank == 0 || at == ids.home_root(rank, nranks) || ends_attempt(error);
        if !informed.contains(&at) && waits_for_it {
            report_failure_to(&ids.roots[at], rank, nranks, error);
        }
    }
}

/// Whether no rank can join after this error.
fn ends_attempt(error: &BootstrapError) -> bool {
    matches!(
        error,
        BootstrapError::Aborted { .. }
            | BootstrapError::MissingRanks { .. }
            | BootstrapError::PeerLost { .. }
            | BootstrapError::PeerFailed { .. }
            | BootstrapError::TimedOut { .. }
    )
}

/// Connects to a root and reports to it that this rank will not come. Gives up after a short time.
fn report_failure_to(contents: &UniqueIdContents, rank: u32, nranks: u32, error: &BootstrapError) {
    let begun = Instant::now();
    let binding = Binding { purpose: Purpose::Root, from: rank, to: 0, nranks, stream: 0 };
    let addresses = listener_address::reachable_here(&contents.root);
    let mut dial = Dialer::new(contents.secret.clone(), binding, addresses);
    let (stream, until) = loop {
        // What came before this time is seen below, however late this thread runs.
        let now = Instant::now();
        let outcome = dial.advance();
        let time = if dial.has_reached() { FAILURE_SEND_TIME } else { FAILURE_REACH_TIME };
        let until = begun + time;
        match outcome {
            Ok(DialOutcome::Connected(stream)) => break (stream, until),
            Ok(DialOutcome::NotYet) if now < until => {
                poll::wait(&mut [dial.poll_fd()], until.min(dial.wake()));
            }
            Ok(DialOutcome::NotYet | DialOutcome::WrongId(_)) | Err(_) => return,
        }
    };
    let mut root = FrameStream::new(stream, 0);
    root.send(&ControlFrame::Verdict(error.verdict(rank)));
    close_gracefully(std::iter::once(&mut root), until);
}
