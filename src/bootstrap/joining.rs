//! A rank while it joins: it registers at the root, connects to its parent, accepts its children,
//! and exchanges rank infos over the tree.

use std::time::{Duration, Instant};

use maypole_transport::noise::{Binding, Purpose};

use super::abort::{self, AbortSignal};
use super::accept::HandshakeAcceptor;
use super::control_tree::ControlTree;
use super::dial::{DialOutcome, Dialer};
use super::error::BootstrapError;
use super::frame::{ControlFrame, RankRegistration};
use super::frame_stream::{FrameStream, SecureStream, StreamEnd, close_gracefully};
use super::id::UniqueIdContents;
use super::listener_address;
use super::multi_root::RootIds;
use super::options::Options;
use super::poll;

/// How long a rank tries to connect to a root that does not answer.
const ROOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than its own deadline a rank waits for the verdict of the root, which names the
/// missing ranks.
const GRACE: Duration = Duration::from_secs(3);
/// How long a rank that leaves waits for the root to close the connection.
pub(super) const LEAVE_TIME: Duration = Duration::from_secs(1);
/// How long a rank that failed tries to report this to a root to which it is not connected.
const FAILURE_SEND_TIME: Duration = Duration::from_millis(500);

/// A rank that is joining.
pub(super) struct JoiningRank<'a> {
    ids: &'a RootIds,
    rank: u32,
    nranks: u32,
    started: Instant,
    deadline: Instant,
    /// The roots that this rank is connected to, with their numbers: until it is connected to its
    /// parent the root of its block, and at rank 0 all roots.
    roots: Vec<(usize, FrameStream)>,
    /// The connection to the parent, while it is being made.
    dialer: Option<Dialer>,
    /// Accepts the connections of the children.
    acceptor: HandshakeAcceptor,
    /// Where the children connect to this rank.
    listener: ListenerAddresses,
    tree: ControlTree,
    abort: Option<AbortSignal>,
    /// The root to which this rank tried to connect last.
    last_root: Option<usize>,
}

impl<'a> JoiningRank<'a> {
    /// Prepares to join. The rank listens for its children from now on.
    pub(super) fn new(
        ids: &'a RootIds,
        rank: u32,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, BootstrapError> {
        let (listeners, listener) = if children(rank, nranks).next().is_some() {
            listener_address::listen()?
        } else {
            (Vec::new(), ListenerAddresses { host_tag: 0, addresses: Vec::new() })
        };
        let started = Instant::now();
        Ok(Self {
            ids,
            rank,
            nranks,
            started,
            deadline: started + options.timeout,
            roots: Vec::new(),
            dialer: None,
            acceptor: HandshakeAcceptor::new(listeners, ids.secret.clone(), Purpose::Tree, rank),
            listener,
            tree: ControlTree::new(rank, nranks, options.abort.clone()),
            abort: options.abort.clone(),
            last_root: None,
        })
    }

    /// Continues after [`register`](Self::register): connects to parent and children, and exchanges
    /// rank infos.
    pub(super) fn run(
        mut self,
        info: &[u8],
    ) -> Result<(Vec<Vec<u8>>, ControlTree), BootstrapError> {
        if let Err(error) = self.connect_tree() {
            // Other ranks wait at the root and at this rank; and the parent may just have accepted
            // this rank.
            let parent =
                self.dialer.take().and_then(Dialer::abandon).map(|it| FrameStream::new(it, 0));
            let others: Vec<FrameStream> = parent.into_iter().chain(self.take_roots()).collect();
            return Err(self.tree.fail_with(error, others));
        }
        self.acceptor.close();
        if self.rank == 0 {
            let roots = self.take_roots();
            self.tree.set_roots(roots);
        }
        let infos = self.tree.all_gather(info, self.deadline + GRACE)?;
        if self.rank == 0 {
            let roots = self.tree.take_roots();
            self.leave(roots, true);
        }
        log::debug!(
            "rank {} joined {} ranks in {:?}",
            self.rank,
            self.nranks,
            self.started.elapsed()
        );
        Ok((infos, self.tree))
    }

    /// Takes the roots to which this rank is connected.
    pub(super) fn take_roots(&mut self) -> Vec<FrameStream> {
        std::mem::take(&mut self.roots).into_iter().map(|(_, root)| root).collect()
    }

    /// Gives up after [`register`](Self::register) failed: every rank that waits for this one
    /// learns that it will not come. A root that could not be reached is not tried again.
    pub(super) fn give_up(mut self, error: BootstrapError) -> BootstrapError {
        let mut informed: Vec<usize> = self.roots.iter().map(|(at, _)| *at).collect();
        if matches!(error, BootstrapError::RootUnreachable { .. } | BootstrapError::WrongId { .. })
        {
            informed.extend(self.last_root);
        }
        let roots = self.take_roots();
        let error = self.tree.fail_with(error, roots);
        report_failure(self.ids, &informed, self.rank, self.nranks, &error);
        error
    }

    /// The binding of a connection that this rank makes.
    fn binding(&self, purpose: Purpose, to: u32) -> Binding {
        Binding { purpose, from: self.rank, to, nranks: self.nranks, stream: 0 }
    }

    /// Registers at the root of the block of this rank, and at those of the blocks of its children.
    pub(super) fn register(&mut self) -> Result<(), BootstrapError> {
        let home = self.ids.home_root(self.rank, self.nranks);
        for at in self.ids.visited_roots(self.rank, self.nranks) {
            self.last_root = Some(at);
            let mut root = FrameStream::new(self.connect_to_root(at)?, 0);
            root.send(&ControlFrame::Register(RankRegistration {
                host: crate::logger::host_name().to_owned(),
                pid: std::process::id(),
                timeout: self.deadline.saturating_duration_since(Instant::now()),
                listener: self.listener.clone(),
                share: self.ids.share(at),
            }));
            if at == home || self.rank == 0 {
                self.roots.push((at, root));
            } else {
                self.leave_announced(root)?;
            }
        }
        Ok(())
    }

    /// Connects to a root.
    fn connect_to_root(&self, at: usize) -> Result<SecureStream, BootstrapError> {
        let UniqueIdContents { secret, root, follows, .. } = &self.ids.roots[at];
        let addresses = root.reachable_here();
        let binding = self.binding(Purpose::Root, 0);
        // Shorter than the deadline of the other ranks, so that they learn the reason and not only
        // that this rank is missing.
        let timeout = self.deadline.saturating_duration_since(self.started) * 9 / 10;
        let until = self.started + timeout.min(ROOT_TIMEOUT);
        let mut dial = Dialer::new(secret.clone(), binding, addresses.clone());
        let mut wrong = None;
        loop {
            abort::check(self.abort.as_ref(), self.rank)?;
            let dialed = dial.advance()?;
            if let DialOutcome::WrongId(address) = dialed {
                wrong = Some(address);
            }
            let over = Instant::now() >= until;
            match (dialed, wrong) {
                (DialOutcome::Connected(stream), _) => return Ok(stream),
                // If the root of an earlier id may still listen there, this rank waits for the
                // right one.
                (_, Some(address)) if over || !follows => {
                    return Err(BootstrapError::WrongId { rank: self.rank, address });
                }
                _ if over => {
                    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                    return Err(BootstrapError::RootUnreachable {
                        rank: self.rank,
                        addresses: texts.join(", "),
                        waited: self.started.elapsed(),
                        last: dial.last_error().to_owned(),
                    });
                }
                _ => {
                    let mut fds = vec![dial.poll_fd()];
                    fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
                    poll::wait(&mut fds, until.min(dial.wake()));
                }
            }
        }
    }

    /// Leaves a root that only needs to know where this rank listens, as soon as it knows.
    fn leave_announced(&mut self, mut root: FrameStream) -> Result<(), BootstrapError> {
        root.send(&ControlFrame::LeaveRoot);
        root.shut_down_sending();
        let until = Instant::now() + LEAVE_TIME;
        loop {
            root.fill();
            match root.next() {
                Ok(Some(ControlFrame::Verdict(verdict))) => {
                    return Err(BootstrapError::of(verdict, self.rank));
                }
                // A list of missing ranks is for ranks that wait.
                Ok(Some(_)) => continue,
                Ok(None) if Instant::now() < until => {}
                _ => break,
            }
            abort::check(self.abort.as_ref(), self.rank)?;
            let mut fds = vec![root.poll_fd()];
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            poll::wait(&mut fds, until);
        }
        self.tree.count_closed(&root);
        Ok(())
    }

    /// Connects to the parent and accepts the connections of the children.
    fn connect_tree(&mut self) -> Result<(), BootstrapError> {
        let mut has_parent = self.rank == 0;
        loop {
            abort::check(self.abort.as_ref(), self.rank)?;
            self.read_roots()?;
            if let Some(dial) = &mut self.dialer
                && let DialOutcome::Connected(stream) = dial.advance()?
            {
                self.dialer = None;
                let above = parent(self.rank).unwrap_or(0);
                self.tree.add_neighbour(above, FrameStream::new(stream, 0));
                has_parent = true;
                let roots = self.take_roots();
                self.leave(roots, false);
            }
            if has_parent && self.tree.missing_children().next().is_none() {
                return Ok(());
            }
            if Instant::now() >= self.deadline + GRACE {
                return Err(self.timeout_error(has_parent));
            }

            let mut fds = Vec::new();
            self.acceptor.poll_fds(&mut fds);
            let acceptor_fds = fds.len();
            self.tree.poll_fds(&mut fds);
            fds.extend(self.roots.iter().map(|(_, root)| root.poll_fd()));
            fds.extend(self.dialer.iter().map(Dialer::poll_fd));
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            let wake = [self.acceptor.wake(), self.dialer.as_ref().map(Dialer::wake)];
            let until = wake.into_iter().flatten().fold(self.deadline + GRACE, Instant::min);
            poll::wait(&mut fds, until);

            let (passed, _) = self.acceptor.advance(&fds[..acceptor_fds]);
            for (binding, stream) in passed {
                self.add_child(binding, stream);
            }
            self.tree.read_joining()?;
        }
    }

    /// Reads the frames of the roots.
    fn read_roots(&mut self) -> Result<(), BootstrapError> {
        for at in 0..self.roots.len() {
            self.roots[at].1.fill();
            self.roots[at].1.flush();
            loop {
                match self.roots[at].1.next() {
                    Ok(Some(ControlFrame::Parent(listener))) => {
                        let Some(above) = parent(self.rank) else { continue };
                        let binding = self.binding(Purpose::Tree, above);
                        let secret = self.ids.secret.clone();
                        self.dialer = Some(Dialer::new(secret, binding, listener.reachable_here()));
                    }
                    Ok(Some(ControlFrame::Missing { ranks, waited })) => {
                        self.tree.report_missing(ranks, waited);
                    }
                    Ok(Some(ControlFrame::Verdict(verdict))) => {
                        return Err(BootstrapError::of(verdict, self.rank));
                    }
                    Ok(None) => break,
                    Err(StreamEnd::Closed) => {
                        let (number, root) = &self.roots[at];
                        let known = &self.ids.roots[*number].root.addresses;
                        let Some(address) = root.peer().or(known.first().copied()) else { break };
                        return Err(BootstrapError::RootLost { rank: self.rank, address });
                    }
                    Ok(Some(_)) | Err(StreamEnd::Malformed) => {
                        return Err(BootstrapError::Protocol {
                            rank: self.rank,
                            peer: String::from("the root"),
                            what: "a frame",
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds a child whose handshake succeeded.
    fn add_child(&mut self, binding: Binding, stream: SecureStream) {
        let is_child = children(self.rank, self.nranks).any(|child| child == binding.from);
        if is_child && binding.nranks == self.nranks {
            self.tree.add_child(binding.from, FrameStream::new(stream, 0));
        } else {
            log::warn!(
                "rank {} connected to rank {}, which is not its parent",
                binding.from,
                self.rank
            );
        }
    }

    /// Tells roots that this rank does not need them any more. If `wait`, waits a short time until
    /// they have read it.
    pub(super) fn leave(&mut self, mut roots: Vec<FrameStream>, wait: bool) {
        for root in &mut roots {
            root.send(&ControlFrame::LeaveRoot);
            root.shut_down_sending();
        }
        if wait {
            close_gracefully(roots.iter_mut(), Instant::now() + LEAVE_TIME);
        }
        roots.iter().for_each(|root| self.tree.count_closed(root));
    }

    /// The error that names the rank that did not come, if the root did not report it.
    fn timeout_error(&self, has_parent: bool) -> BootstrapError {
        let above = parent(self.rank).filter(|_| !has_parent);
        let (waiting_for, what) = match (above, self.tree.missing_children().next()) {
            (Some(above), _) => (above, "to take its connection"),
            (None, absent) => (absent.unwrap_or(self.rank), "to connect"),
        };
        BootstrapError::TimedOut {
            rank: self.rank,
            waiting_for,
            what: String::from(what),
            waited: self.started.elapsed(),
        }
    }
}

/// Tells the roots at which this rank registers that it will not come, except those in `informed`.
pub(super) fn report_failure(
    ids: &RootIds,
    informed: &[usize],
    rank: u32,
    nranks: u32,
    error: &BootstrapError,
) {
    for at in ids.visited_roots(rank, nranks) {
        if !informed.contains(&at) && (rank == 0 || at == ids.home_root(rank, nranks)) {
            report_failure_to(&ids.roots[at], rank, nranks, error);
        }
    }
}

/// Connects to a root and reports to it that this rank will not come. Gives up after a short time.
fn report_failure_to(contents: &UniqueIdContents, rank: u32, nranks: u32, error: &BootstrapError) {
    let until = Instant::now() + FAILURE_SEND_TIME;
    let binding = Binding { purpose: Purpose::Root, from: rank, to: 0, nranks, stream: 0 };
    let mut dial = Dialer::new(contents.secret.clone(), binding, contents.root.reachable_here());
    let stream = loop {
        match dial.advance() {
            Ok(DialOutcome::Connected(stream)) => break stream,
            Ok(DialOutcome::NotYet) if Instant::now() < until => {
                poll::wait(&mut [dial.poll_fd()], until.min(dial.wake()));
            }
            Ok(DialOutcome::NotYet | DialOutcome::WrongId(_)) | Err(_) => return,
        }
    };
    let mut root = FrameStream::new(stream, 0);
    root.send(&ControlFrame::Verdict(error.verdict(rank)));
    close_gracefully(std::iter::once(&mut root), until);
}
