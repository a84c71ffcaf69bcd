//! One communicator as the service thread serves it: its control tree, its inquiries, and its end.
//!
//! | file | purpose |
//! |---|---|
//! | `mod` | commands and events; verdicts; exchanges |
//! | `inquiry` | finding out why a wait takes long |
//! | `device_work` | checking the work on a CUDA device |

mod device_work;
mod inquiry;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;
use maypole_transport::sync::Ordering;

use super::message::ControlMessage;
use super::verdict::Verdict;
use super::{
    CommunicatorCommand, ControlShared, DEAD, LEFT, PeerInfo, USER_ABORT, USER_REVOKE, VERDICT,
};
use crate::bootstrap::poll::{poll_fd, poll_now};
use crate::bootstrap::{BootstrapError, ControlTree, TreeEvent, TreeExchange};
use crate::error::Error;
use crate::process::ProcessWatch;
use device_work::DeviceWork;
use inquiry::{Inquiry, InquiryPurpose};

/// A communicator that the service thread serves.
pub(super) struct ServedCommunicator {
    shared: Arc<ControlShared>,
    tree: ControlTree,
    peers: Vec<PeerInfo>,
    /// The processes of neighbours on this host.
    watched: Vec<(Rank, OwnedFd)>,
    /// Neighbours that had ended before they could be watched.
    ended: Vec<Rank>,
    /// Neighbours that have announced that they leave.
    left: Vec<Rank>,
    /// The exchange in progress, and its deadline.
    exchange: Option<(TreeExchange, Instant)>,
    inquiries: Vec<Inquiry>,
    /// The token of the last question.
    token: u32,
    /// A connection that is being made.
    connecting: Option<ConnectionAttempt>,
    /// After how long a wait is investigated.
    report: Duration,
    /// After how long a wait is an error.
    timeout: Option<Duration>,
    /// The work on the device of the rank.
    device: Option<DeviceWork>,
}

/// A connection that is being made.
struct ConnectionAttempt {
    peer: Rank,
    since: Instant,
    /// When it is investigated.
    due: Instant,
}

impl ServedCommunicator {
    /// Begins to serve a communicator: watches the processes and hosts of its neighbours.
    pub(super) fn new(
        shared: Arc<ControlShared>,
        tree: ControlTree,
        peers: Vec<PeerInfo>,
        report: Duration,
        timeout: Option<Duration>,
    ) -> Self {
        let (mut watched, mut ended) = (Vec::new(), Vec::new());
        let me = &peers[shared.rank as usize].process;
        for rank in tree.neighbours() {
            let PeerInfo { process, same_host, .. } = &peers[rank as usize];
            if !same_host {
                tree.enable_keep_alive(rank);
            } else if me.shares_namespace_with(process) && process.pid != me.pid {
                match process.watch() {
                    ProcessWatch::Running(fd) => watched.push((rank, fd)),
                    ProcessWatch::Ended => ended.push(rank),
                    // The end of its connection will show the end of the process.
                    ProcessWatch::Invisible => {}
                }
            }
        }
        Self {
            shared,
            tree,
            peers,
            watched,
            ended,
            left: Vec::new(),
            exchange: None,
            inquiries: Vec::new(),
            token: 0,
            connecting: None,
            report,
            timeout,
            device: None,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.shared.id
    }

    pub(super) fn shared(&self) -> Arc<ControlShared> {
        self.shared.clone()
    }

    /// Appends the entries to poll.
    pub(super) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        self.tree.poll_fds(fds);
        fds.extend(self.watched.iter().map(|(_, fd)| poll_fd(fd.as_raw_fd(), libc::POLLIN)));
    }

    /// When [`turn`](Self::turn) must be called at the latest.
    pub(super) fn wake(&self) -> Option<Instant> {
        let exchange = self.exchange.iter().map(|(_, deadline)| *deadline);
        let inquiries = self.inquiries.iter().map(|inquiry| inquiry.due);
        let device = self.device.iter().map(|work| work.due);
        exchange.chain(inquiries).chain(self.connecting.iter().map(|it| it.due)).chain(device).min()
    }

    /// Does what the thread of the communicator asks for.
    pub(super) fn obey(&mut self, command: CommunicatorCommand) {
        match command {
            CommunicatorCommand::Investigate(peer, since) => self.investigate(peer, since),
            CommunicatorCommand::Connecting(peer) => {
                let since = Instant::now();
                self.connecting = Some(ConnectionAttempt { peer, since, due: since + self.report });
            }
            CommunicatorCommand::WatchDevice => {
                self.device = Some(DeviceWork::begin(Instant::now()))
            }
            CommunicatorCommand::Decide(verdict) => self.decide(verdict, None),
            CommunicatorCommand::FindMismatch(peer, fallback) => {
                self.ask(InquiryPurpose::Mismatch { peer, fallback });
            }
            CommunicatorCommand::Exchange(bytes, deadline) => {
                self.spread_link_failure();
                let gone = self.left.first().map(|&peer| LinkError::PeerLeft { peer }.into());
                match self.shared.final_error().or(gone) {
                    Some(error) => self.shared.change(|state| state.exchanged = Some(Err(error))),
                    None => self.exchange = Some((self.tree.begin_exchange(&bytes), deadline)),
                }
            }
        }
    }

    /// Handles all events that have come. `all` are all communicators of the process.
    pub(super) fn turn(&mut self, now: Instant, all: &[Arc<ControlShared>]) {
        // Before the connections are read: what a process sent before it ended can then be read.
        let ended = self.ended_processes();
        for event in self.tree.read_events() {
            match event {
                TreeEvent::Message(from, bytes) => self.handle_message(from, &bytes, all),
                TreeEvent::Failed(rank, error) => {
                    let error = match error {
                        error @ (BootstrapError::PeerLost { .. }
                        | BootstrapError::PeerFailed { .. }
                        | BootstrapError::Aborted { .. }) => error,
                        other => BootstrapError::PeerFailed { rank, why: other.to_string() },
                    };
                    self.decide(Verdict::of(self.shared.rank, &error.into()), None);
                }
                TreeEvent::Ended(rank) if self.left.contains(&rank) => {}
                TreeEvent::Ended(rank) => self.decide(Verdict::Dead { rank }, None),
            }
        }
        for rank in ended {
            self.watched.retain(|(watched, _)| *watched != rank);
            if !self.left.contains(&rank) {
                self.decide(Verdict::Dead { rank }, None);
            }
        }
        self.advance(now);
        self.check_connection_attempt(now);
        self.check_device(now);
        while let Some(at) = self.inquiries.iter().position(|inquiry| inquiry.due <= now) {
            let inquiry = self.inquiries.swap_remove(at);
            self.unanswered(inquiry.purpose);
        }
    }

    /// Leaves the communicator: informs the neighbours and closes the connections.
    pub(super) fn leave(mut self) {
        self.spread_link_failure();
        let neighbours: Vec<Rank> = self.tree.neighbours().collect();
        for rank in neighbours {
            self.tree.send_message(rank, &ControlMessage::Leave.encode());
        }
        self.tree.close();
        self.shared.change(|state| state.removed = true);
    }

    /// Leaves a communicator that will not be dropped, because the process ends.
    pub(super) fn leave_at_exit(self) {
        if let Some(endpoint) = self.shared.endpoint.upgrade() {
            endpoint.leave();
        }
        self.leave();
    }

    /// The neighbours whose process has ended.
    fn ended_processes(&mut self) -> Vec<Rank> {
        let mut ended = std::mem::take(&mut self.ended);
        let entry = |(_, fd): &(Rank, OwnedFd)| poll_fd(fd.as_raw_fd(), libc::POLLIN);
        let mut fds: Vec<libc::pollfd> = self.watched.iter().map(entry).collect();
        poll_now(&mut fds);
        let ended_now = self.watched.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0);
        ended.extend(ended_now.map(|((rank, _), _)| *rank));
        ended
    }

    /// Handles a control message of a neighbour.
    fn handle_message(&mut self, from: Rank, bytes: &[u8], all: &[Arc<ControlShared>]) {
        let rank = self.shared.rank;
        match ControlMessage::decode(bytes) {
            Some(ControlMessage::Leave) => {
                // An exchange may need nothing more than what the neighbour sent before it left.
                self.advance(Instant::now());
                self.left.push(from);
                self.watched.retain(|(watched, _)| *watched != from);
                self.tree.remove_neighbour(from);
                if self.exchange.take().is_some() {
                    let error = LinkError::PeerLeft { peer: from }.into();
                    self.shared.change(|state| state.exchanged = Some(Err(error)));
                }
            }
            Some(ControlMessage::Verdict(verdict)) => self.decide(verdict, Some(from)),
            Some(ControlMessage::Question { token, from: asker, to }) if to == rank => {
                let answer = self.activity(all);
                let answer = ControlMessage::Answer { token, from: rank, to: asker, answer };
                self.send_to(asker, &answer.encode());
            }
            Some(ControlMessage::Answer { token, from: _, to, answer }) if to == rank => {
                let at = self.inquiries.iter().position(|inquiry| inquiry.token == token);
                if let Some(at) = at {
                    let inquiry = self.inquiries.swap_remove(at);
                    self.answered(inquiry.purpose, &answer);
                }
            }
            Some(ControlMessage::Question { to, .. } | ControlMessage::Answer { to, .. }) => {
                self.send_to(to, bytes);
            }
            None => log::warn!(
                "rank {rank}: rank {from} sent a control message that cannot be read; use the same \
                 version of the library on all ranks"
            ),
        }
    }

    /// Sends a message to another rank, or passes it on. If a connection on the path is gone the
    /// message is lost, and the rank that asked notices that no answer comes.
    fn send_to(&mut self, to: Rank, bytes: &[u8]) {
        if to < self.shared.nranks
            && let Some(next) = self.tree.next_hop(to)
        {
            self.tree.send_message(next, bytes);
        }
    }

    /// Sends a failure that this rank knows from a link over the tree too, before any message that
    /// is a consequence of it: otherwise a neighbour could learn that this rank leaves before it
    /// learns why.
    fn spread_link_failure(&mut self) {
        if let Some(
            error @ (Error::Aborted { .. }
            | Error::Revoked { .. }
            | Error::Link(LinkError::PeerDied { .. } | LinkError::PeerLeft { .. })),
        ) = self.shared.final_error()
        {
            self.decide(Verdict::of(self.shared.rank, &error), None);
        }
    }

    /// Ends the communicator: sends the verdict to all neighbours but `sender`, and ends the waits
    /// of this rank. Only the first verdict counts.
    fn decide(&mut self, verdict: Verdict, sender: Option<Rank>) {
        let mut first = false;
        self.shared.change(|state| {
            if state.verdict.is_none() {
                state.verdict = Some(verdict.clone());
                first = true;
            }
        });
        if !first {
            return;
        }
        let message = ControlMessage::Verdict(verdict.clone()).encode();
        let neighbours: Vec<Rank> = self.tree.neighbours().collect();
        for rank in neighbours.into_iter().filter(|rank| Some(*rank) != sender) {
            self.tree.send_message(rank, &message);
        }
        self.shared.abort_endpoint(match verdict {
            Verdict::Dead { rank } => DEAD | rank,
            Verdict::Left { rank } => LEFT | rank,
            Verdict::Aborted { by } if by == self.shared.rank => USER_ABORT,
            Verdict::Revoked { by } if by == self.shared.rank => USER_REVOKE,
            _ => VERDICT,
        });
        if self.exchange.take().is_some() {
            self.shared.change(|state| state.exchanged = Some(Err(verdict.error())));
        }
        self.inquiries.clear();
        self.connecting = None;
    }

    /// Continues the exchange in progress.
    fn advance(&mut self, now: Instant) {
        let Some((exchange, deadline)) = &mut self.exchange else { return };
        let result = match self.tree.advance_exchange(exchange) {
            Ok(None) if now < *deadline => return,
            Ok(None) => Err(self.tree.exchange_timeout(exchange)),
            Ok(Some(whole)) => Ok(whole),
            Err(error) => Err(error),
        };
        match result {
            Ok(whole) => {
                self.exchange = None;
                self.shared.change(|state| state.exchanged = Some(Ok(whole)));
            }
            Err(error) => {
                let error = match error {
                    BootstrapError::TimedOut { rank, waiting_for, what, waited } => {
                        Error::Timeout { rank, peer: waiting_for, what, waited }
                    }
                    other => other.into(),
                };
                self.decide(Verdict::of(self.shared.rank, &error), None);
            }
        }
    }

    /// Investigates a connection that takes long to be made.
    fn check_connection_attempt(&mut self, now: Instant) {
        let Some(ConnectionAttempt { peer, since, due }) = &mut self.connecting else { return };
        if self.shared.connecting.load(Ordering::Relaxed) != u64::from(*peer) + 1 {
            self.connecting = None;
        } else if *due <= now {
            let (peer, since) = (*peer, *since);
            *due = now + (now - since);
            self.investigate(peer, since);
        }
    }
}
