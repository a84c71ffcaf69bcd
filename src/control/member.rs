//! One communicator as the service thread sees it: its tree, what was asked and what is proven.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;
use maypole_transport::error::LinkError;
use maypole_transport::sync::Ordering;

use crate::bootstrap::stream::poll_fd;
use crate::bootstrap::{BootstrapError, ControlTree, Exchange, Heard};
use crate::control::device::DeviceWork;
use crate::control::flight_recorder::RecorderSnapshot;
use crate::control::message::{Answer, Note};
use crate::control::report::{Reason, Report};
use crate::control::service::Command;
use crate::control::verdict::Verdict;
use crate::control::{ControlShared, DEAD, LEFT, MOST_REPORTS, PeerInfo, USER_ABORT, VERDICT};
use crate::error::Error;
use crate::process::{ProcessState, ProcessWatch};

/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// A communicator in the hands of the service thread.
pub(crate) struct Member {
    pub(super) shared: Arc<ControlShared>,
    tree: ControlTree,
    peers: Vec<PeerInfo>,
    /// The processes of neighbours on this host.
    watched: Vec<(Rank, OwnedFd)>,
    /// Neighbours that had ended before they could be watched.
    ended: Vec<Rank>,
    /// Neighbours that said that they leave.
    pub(super) left: Vec<Rank>,
    exchange: Option<(Exchange, Instant)>,
    inquiries: Vec<Inquiry>,
    token: u32,
    /// A connection that is being made.
    opening: Option<Opening>,
    /// After what time that is suspicious.
    pub(super) report: Duration,
    /// After what time a wait is an error.
    pub(super) timeout: Option<Duration>,
    /// Work on the rank's device.
    pub(super) device: Option<DeviceWork>,
}

struct Opening {
    peer: Rank,
    since: Instant,
    /// When it is suspicious.
    due: Instant,
}

/// A question under way.
struct Inquiry {
    token: u32,
    purpose: Purpose,
    due: Instant,
}

pub(super) enum Purpose {
    /// Since when this rank waits, in which call, and whom it leads to; the last one was asked.
    Suspicion { since: Instant, sequence: u64, chain: Vec<Rank> },
    /// A message of this rank belongs to another call; what to say if it cannot be told to which.
    Mismatch { peer: Rank, fallback: String },
}

impl Purpose {
    fn asked(&self) -> Rank {
        match self {
            Self::Suspicion { chain, .. } => chain.last().copied().unwrap_or(0),
            Self::Mismatch { peer, .. } => *peer,
        }
    }
}

impl Member {
    pub(crate) fn new(
        shared: Arc<ControlShared>,
        tree: ControlTree,
        peers: Vec<PeerInfo>,
        report: Duration,
        timeout: Option<Duration>,
    ) -> Self {
        let (mut watched, mut ended) = (Vec::new(), Vec::new());
        let me = &peers[shared.rank as usize].process;
        for rank in tree.neighbours() {
            let PeerInfo { process, near, .. } = &peers[rank as usize];
            if !near {
                tree.keep_alive(rank);
            } else if me.shares_namespace_with(process) && process.pid != me.pid {
                match process.watch() {
                    ProcessWatch::Running(fd) => watched.push((rank, fd)),
                    ProcessWatch::Ended => ended.push(rank),
                    // The end of its connection must do.
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
            opening: None,
            report,
            timeout,
            device: None,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.shared.id
    }

    pub(crate) fn shared(&self) -> Arc<ControlShared> {
        self.shared.clone()
    }

    /// Appends what to poll.
    pub(crate) fn poll_fds(&self, fds: &mut Vec<libc::pollfd>) {
        self.tree.poll_fds(fds);
        fds.extend(self.watched.iter().map(|(_, fd)| poll_fd(fd.as_raw_fd(), libc::POLLIN)));
    }

    /// When there is something to do though nothing happens.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let exchange = self.exchange.iter().map(|(_, deadline)| *deadline);
        let inquiries = self.inquiries.iter().map(|inquiry| inquiry.due);
        let device = self.device.iter().map(|work| work.due);
        exchange.chain(inquiries).chain(self.opening.iter().map(|it| it.due)).chain(device).min()
    }

    /// Does what the communicator's thread asks for.
    pub(crate) fn obey(&mut self, command: Command) {
        match command {
            Command::Suspect(_, peer, since) => self.suspect(peer, since),
            Command::Opening(_, peer) => {
                let since = Instant::now();
                self.opening = Some(Opening { peer, since, due: since + self.report });
            }
            Command::Look(_) => self.device = Some(DeviceWork::begin(Instant::now())),
            Command::Decide(_, verdict) => self.decide(verdict, None),
            Command::Accuse(_, peer, fallback) => self.ask(Purpose::Mismatch { peer, fallback }),
            Command::Exchange(_, bytes, deadline) => {
                self.pass_on_end();
                let gone = self.left.first().map(|&peer| LinkError::PeerLeft { peer }.into());
                match self.shared.final_error().or(gone) {
                    Some(error) => self.shared.change(|state| state.exchanged = Some(Err(error))),
                    None => self.exchange = Some((self.tree.begin(&bytes), deadline)),
                }
            }
            Command::Add(_) | Command::Remove(_) | Command::Farewell(_) | Command::Stop => {
                debug_assert!(false, "these are the thread's");
            }
        }
    }

    /// Looks at everything once. `roster`: all communicators of the process.
    pub(crate) fn turn(&mut self, now: Instant, roster: &[Arc<ControlShared>]) {
        // Before the connections: what a process sent before it ended is there then.
        let ended = self.ended_processes();
        for heard in self.tree.listen() {
            match heard {
                Heard::Note(from, bytes) => self.hear(from, &bytes, roster),
                Heard::Failed(rank, error) => {
                    let error = match error {
                        error @ (BootstrapError::PeerLost { .. }
                        | BootstrapError::PeerFailed { .. }
                        | BootstrapError::Aborted { .. }) => error,
                        other => BootstrapError::PeerFailed { rank, why: other.to_string() },
                    };
                    self.decide(Verdict::of(self.shared.rank, &error.into()), None);
                }
                Heard::Ended(rank) if self.left.contains(&rank) => {}
                Heard::Ended(rank) => self.decide(Verdict::Dead { rank }, None),
            }
        }
        for rank in ended {
            self.watched.retain(|(watched, _)| *watched != rank);
            if !self.left.contains(&rank) {
                self.decide(Verdict::Dead { rank }, None);
            }
        }
        self.advance(now);
        self.look_at_opening(now);
        self.look_at_device(now);
        while let Some(at) = self.inquiries.iter().position(|inquiry| inquiry.due <= now) {
            let inquiry = self.inquiries.swap_remove(at);
            self.unanswered(inquiry.purpose);
        }
    }

    /// Says goodbye.
    pub(crate) fn leave(mut self) {
        self.pass_on_end();
        let neighbours: Vec<Rank> = self.tree.neighbours().collect();
        for rank in neighbours {
            self.tree.tell(rank, &Note::Leave.encode());
        }
        self.tree.close();
        self.shared.change(|state| state.removed = true);
    }

    /// Says goodbye for a communicator that will not be dropped.
    pub(crate) fn depart(self) {
        if let Some(endpoint) = self.shared.endpoint.upgrade() {
            endpoint.leave();
        }
        self.leave();
    }

    fn ended_processes(&mut self) -> Vec<Rank> {
        let mut ended = std::mem::take(&mut self.ended);
        let entry = |(_, fd): &(Rank, OwnedFd)| poll_fd(fd.as_raw_fd(), libc::POLLIN);
        let mut fds: Vec<libc::pollfd> = self.watched.iter().map(entry).collect();
        // SAFETY: `fds` is an array of pollfd, writable for its length; the call does not wait.
        unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 0) };
        let over = self.watched.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0);
        ended.extend(over.map(|((rank, _), _)| *rank));
        ended
    }

    fn hear(&mut self, from: Rank, bytes: &[u8], roster: &[Arc<ControlShared>]) {
        let me = self.shared.rank;
        match Note::decode(bytes) {
            Some(Note::Leave) => {
                // What it sent before it left may be all that an exchange still needs.
                self.advance(Instant::now());
                self.left.push(from);
                self.watched.retain(|(watched, _)| *watched != from);
                self.tree.forget(from);
                if self.exchange.take().is_some() {
                    let error = LinkError::PeerLeft { peer: from }.into();
                    self.shared.change(|state| state.exchanged = Some(Err(error)));
                }
            }
            Some(Note::Verdict(verdict)) => self.decide(verdict, Some(from)),
            Some(Note::Ask { token, from: asker, to }) if to == me => {
                let answer = self.answer(roster);
                self.pass(asker, &Note::Answer { token, from: me, to: asker, answer }.encode());
            }
            Some(Note::Answer { token, from: _, to, answer }) if to == me => {
                let at = self.inquiries.iter().position(|inquiry| inquiry.token == token);
                if let Some(at) = at {
                    let inquiry = self.inquiries.swap_remove(at);
                    self.answered(inquiry.purpose, &answer);
                }
            }
            Some(Note::Ask { to, .. } | Note::Answer { to, .. }) => self.pass(to, bytes),
            None => log::warn!("rank {me}: rank {from} sent an unreadable message"),
        }
    }

    /// Sends or passes on what is for another rank. If the tree has a hole there it is lost, and missed by who asked.
    fn pass(&mut self, to: Rank, bytes: &[u8]) {
        if to < self.shared.nranks
            && let Some(next) = self.tree.toward(to)
        {
            self.tree.tell(next, bytes);
        }
    }

    /// It is over: tells everybody, then ends the waits here. The first verdict counts.
    /// What ended the communicator over a link goes over the tree too, and before anything that follows from it: else a neighbour
    /// may hear of this rank's departure before it hears of the reason.
    fn pass_on_end(&mut self) {
        if let Some(
            error @ (Error::Aborted { .. }
            | Error::Link(LinkError::PeerDied { .. } | LinkError::PeerLeft { .. })),
        ) = self.shared.final_error()
        {
            self.decide(Verdict::of(self.shared.rank, &error), None);
        }
    }

    pub(super) fn decide(&mut self, verdict: Verdict, heard_from: Option<Rank>) {
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
        let note = Note::Verdict(verdict.clone()).encode();
        let neighbours: Vec<Rank> = self.tree.neighbours().collect();
        for rank in neighbours.into_iter().filter(|rank| Some(*rank) != heard_from) {
            self.tree.tell(rank, &note);
        }
        self.shared.abort_endpoint(match verdict {
            Verdict::Dead { rank } => DEAD | rank,
            Verdict::Left { rank } => LEFT | rank,
            Verdict::Aborted { by } if by == self.shared.rank => USER_ABORT,
            _ => VERDICT,
        });
        if self.exchange.take().is_some() {
            self.shared.change(|state| state.exchanged = Some(Err(verdict.error())));
        }
        self.inquiries.clear();
        self.opening = None;
    }

    fn advance(&mut self, now: Instant) {
        let Some((exchange, deadline)) = &mut self.exchange else { return };
        let result = match self.tree.advance(exchange) {
            Ok(None) if now < *deadline => return,
            Ok(None) => Err(self.tree.late(exchange)),
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

    fn look_at_opening(&mut self, now: Instant) {
        let Some(Opening { peer, since, due }) = &mut self.opening else { return };
        if self.shared.opening.load(Ordering::Relaxed) != u64::from(*peer) + 1 {
            self.opening = None;
        } else if *due <= now {
            let (peer, since) = (*peer, *since);
            *due = now + (now - since);
            self.suspect(peer, since);
        }
    }

    pub(super) fn suspect(&mut self, peer: Rank, since: Instant) {
        let busy = |inquiry: &Inquiry| matches!(inquiry.purpose, Purpose::Suspicion { .. });
        if peer == self.shared.rank || self.inquiries.iter().any(busy) {
            return;
        }
        let sequence = self.shared.record.read().sequence.saturating_sub(self.queued_behind());
        self.ask(Purpose::Suspicion { since, sequence, chain: vec![peer] });
    }

    pub(super) fn ask(&mut self, purpose: Purpose) {
        let asked = purpose.asked();
        if asked >= self.shared.nranks || self.shared.final_error().is_some() {
            return;
        }
        // A stopped process cannot answer, and a dead one never will: no need to wait for it.
        if self.state_of(asked).is_some_and(|state| state != ProcessState::Running) {
            return self.unanswered(purpose);
        }
        self.token = self.token.wrapping_add(1);
        let (token, from) = (self.token, self.shared.rank);
        self.pass(asked, &Note::Ask { token, from, to: asked }.encode());
        self.inquiries.push(Inquiry { token, purpose, due: Instant::now() + ANSWER_PATIENCE });
    }

    fn answer(&self, roster: &[Arc<ControlShared>]) -> Answer {
        let snapshot = self.shared.record.read();
        let same_thread = |other: &&Arc<ControlShared>| {
            other.key != self.shared.key && other.thread == self.shared.thread
        };
        let elsewhere = roster.iter().filter(same_thread).find_map(|other| {
            let seen = other.record.read();
            let wait = seen
                .waits_for
                .map_or(String::new(), |peer| format!(", waiting for its rank {peer}"));
            seen.in_call.then(|| format!("{}{wait}", seen.last()))
        });
        Answer { elsewhere: elsewhere.filter(|_| !snapshot.in_call), snapshot }
    }

    fn answered(&mut self, purpose: Purpose, answer: &Answer) {
        let (me, asked) = (self.shared.rank, purpose.asked());
        let (ours, theirs) = (self.shared.record.read(), &answer.snapshot);
        if let Some(verdict) = Verdict::compare((me, &ours), (asked, theirs)) {
            return self.decide(verdict, None);
        }
        match purpose {
            Purpose::Mismatch { peer, fallback } => {
                let what = format!(
                    "rank {me} is at {}, rank {peer} at {}; {fallback}",
                    ours.last(),
                    theirs.last()
                );
                self.decide(Verdict::Mismatch { ranks: [me, peer], what }, None);
            }
            Purpose::Suspicion { since, sequence, chain } => {
                // The wait may be over by now.
                if self.still_waits(&ours, sequence) {
                    self.judge(since, sequence, chain, answer);
                }
            }
        }
    }

    /// What keeps the last rank of the chain; if that is another rank, asks on.
    fn judge(&mut self, since: Instant, sequence: u64, mut chain: Vec<Rank>, answer: &Answer) {
        let Answer { snapshot: theirs, elsewhere } = answer;
        if let Some(next) = self.next_to_ask(&chain, theirs, sequence) {
            return self.ask(Purpose::Suspicion { since, sequence, chain: vec![next] });
        }
        let reason = match (theirs.in_call, theirs.waits_for) {
            _ if theirs.sequence > sequence => Reason::SlowLink,
            (true, Some(next)) if next == self.shared.rank || chain.contains(&next) => {
                Reason::Cycle
            }
            (true, Some(next)) if next < self.shared.nranks => {
                chain.push(next);
                return self.ask(Purpose::Suspicion { since, sequence, chain });
            }
            (true, _) if theirs.sequence < sequence => Reason::EarlierCall,
            (true, _) => Reason::Working,
            (false, _) if theirs.sequence == sequence => Reason::SlowLink,
            (false, _) => match elsewhere {
                Some(what) => Reason::OtherCommunicator { what: what.clone() },
                None => Reason::NotJoined,
            },
        };
        self.report(since, chain, Some(theirs), reason);
    }

    fn unanswered(&mut self, purpose: Purpose) {
        let asked = purpose.asked();
        let state = self.state_of(asked);
        let left = self.left.contains(&asked) || self.left_here(asked);
        if state == Some(ProcessState::Ended) && !left {
            return self.decide(Verdict::Dead { rank: asked }, None);
        }
        match purpose {
            Purpose::Mismatch { peer, fallback } => {
                let me = self.shared.rank;
                let ours = self.shared.record.read().last();
                let what = format!("rank {me} is at {ours}; {fallback}");
                self.decide(Verdict::Mismatch { ranks: [me, peer], what }, None);
            }
            Purpose::Suspicion { since, sequence, chain } => {
                let ours = self.shared.record.read();
                if !self.still_waits(&ours, sequence) {
                    return;
                }
                let stopped = |rank: &Rank| self.state_of(*rank) == Some(ProcessState::Stopped);
                let reason = match state {
                    _ if left => Reason::Left,
                    Some(ProcessState::Stopped) => Reason::Stopped,
                    _ => Reason::NoAnswer {
                        stopped_on_the_way: self.tree.between(asked).into_iter().find(stopped),
                    },
                };
                self.report(since, chain, None, reason);
            }
        }
    }

    fn report(
        &self,
        since: Instant,
        chain: Vec<Rank>,
        theirs: Option<&RecorderSnapshot>,
        reason: Reason,
    ) {
        let ours = self.shared.record.read();
        let culprit = chain.last().copied().unwrap_or(self.shared.rank);
        let peer = &self.peers[culprit as usize];
        let report = Report {
            rank: self.shared.rank,
            call: ours.last(),
            waited: since.elapsed(),
            chain,
            host: peer.host.clone(),
            pid: peer.process.pid,
            their_call: theirs.map(RecorderSnapshot::last),
            reason,
        };
        log::warn!("{report}");
        self.shared.change(|state| {
            if state.reports.len() == MOST_REPORTS {
                state.reports.pop_front();
            }
            state.reports.push_back(report);
        });
    }

    /// The state of a rank's process, if it can be seen from here and is not our own.
    fn state_of(&self, rank: Rank) -> Option<ProcessState> {
        let me = &self.peers[self.shared.rank as usize].process;
        let PeerInfo { process, near, .. } = self.peers.get(rank as usize)?;
        (*near && me.shares_namespace_with(process) && me.pid != process.pid)
            .then(|| process.state())
    }

    /// Whether a connected rank said on its link that it leaves.
    fn left_here(&self, rank: Rank) -> bool {
        let gone = self.shared.endpoint.upgrade().and_then(|endpoint| endpoint.gone(rank));
        matches!(gone, Some(LinkError::PeerLeft { .. }))
    }
}
