//! A rank while it joins: it registers at the roots, connects to its parent and accepts its
//! children. What goes over the control tree meanwhile is the business of the
//! [`CommunicatorCore`](crate::communicator::CommunicatorCore).

use std::collections::VecDeque;
use std::time::Duration;

use maypole_algorithms::Rank;

use super::root::gone_before_it_joined;
use crate::frame::{ControlFrame, RankRegistration};
use crate::listener_addresses::ListenerAddresses;
use crate::rank_set::RankSet;
use crate::root_share::RootShare;
use crate::time::Time;
use crate::tree_shape::{children, parent};
use crate::verdict::Verdict;

/// How long a rank tries to connect to a root at whose addresses nothing has taken a connection.
const ROOT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a rank tries to connect to a root that has taken a connection and does not answer.
const ROOT_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than its own deadline a rank waits for the verdict of the root, which names the
/// missing ranks.
pub const GRACE: Duration = Duration::from_secs(3);
/// How long a rank that leaves waits for the root to close the connection.
pub const LEAVE_TIME: Duration = Duration::from_secs(1);

/// A root at which a rank registers.
#[derive(Clone, Copy, Debug)]
pub struct RootVisit {
    /// The number of the root among those of the communicator.
    pub root: usize,
    /// The ranks that the root serves.
    pub share: RootShare,
    /// The root is that of a shrink. It listens where that of an earlier shrink may still listen,
    /// and where rank 0 listens as long as it has the communicator that is shrunk.
    pub follows: bool,
    /// The root may begin to listen only after this rank has begun to join.
    pub appears_later: bool,
}

/// What a rank is told before it joins.
#[derive(Clone, Debug)]
pub struct JoinPlan {
    /// The rank.
    pub rank: Rank,
    /// The number of ranks.
    pub nranks: u32,
    /// The roots at which it registers, that of its own block first.
    pub visits: Vec<RootVisit>,
    /// How long it waits for the other ranks.
    pub timeout: Duration,
    /// The name of its host, to be printed.
    pub host: String,
    /// The number of its process, to be printed.
    pub pid: u32,
    /// Where its children connect to it.
    pub listener: ListenerAddresses,
}

/// What happens to a rank that joins. Roots are named by their numbers.
#[derive(Clone, Debug)]
pub enum JoinInput {
    /// The connection to a root is made, and the handshake succeeded.
    RootConnected(usize),
    /// A root has taken a connection, which is not proven yet.
    RootReached(usize),
    /// For some time the system has refused all connections to a root: nothing listens there.
    RootRefused(usize),
    /// A root does not know the secret.
    RootHasOtherId(usize),
    /// A root sent a frame.
    RootFrame(usize, ControlFrame),
    /// A root sent bytes that are not a frame.
    RootMalformed(usize),
    /// The connection to a root ended.
    RootClosed(usize),
    /// The connection to the parent is made.
    ParentConnected,
    /// A child has connected.
    ChildConnected(Rank),
    /// The control tree has failed.
    TreeFailed(Verdict),
    /// All rank infos have come.
    Gathered,
    /// The user aborts.
    Abort,
    /// Everything that came before the given time has been passed on: deadlines before it count.
    Tick,
}

/// What a rank that joins wants to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinOutput {
    /// Connect to a root.
    DialRoot(usize),
    /// Send a frame to a root.
    SendRoot(usize, ControlFrame),
    /// Send nothing more to a root after what was sent, and close the connection in the background.
    FinishRoot(usize),
    /// Connect to the parent, which listens at these addresses. Replaces an earlier attempt.
    DialParent(ListenerAddresses),
    /// These ranks have not joined after this time.
    Missing(RankSet, Duration),
    /// All neighbours are connected: gather the rank infos.
    TreeComplete,
    /// The rank has failed.
    Failed(JoinFailure),
    /// The rank has joined.
    Joined,
}

/// Why a rank did not join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinFailure {
    /// The user aborted.
    Aborted,
    /// No connection to this root could be made.
    RootUnreachable(usize),
    /// This root does not know the secret.
    RootHasOtherId(usize),
    /// This root went away.
    RootLost(usize),
    /// This root broke the protocol.
    RootProtocol(usize),
    /// Another rank failed, or the root says why the attempt has ended.
    Verdict(Verdict),
    /// A rank did not come, and the root did not say so.
    TimedOut {
        /// The rank.
        waiting_for: Rank,
        /// What it did not do, as an infinitive.
        what: &'static str,
        /// How long this rank waited.
        waited: Duration,
    },
}

/// A rank while it joins.
#[derive(Debug)]
pub struct JoinCore {
    plan: JoinPlan,
    now: Time,
    started: Time,
    phase: JoinPhase,
    /// The roots to which it is connected.
    roots: Vec<usize>,
    /// The root that does not know the secret, and may be followed by one that does.
    other_id: Option<usize>,
    /// The root that has taken a connection last.
    reached: Option<usize>,
    is_registered: bool,
    has_parent: bool,
    missing_children: Vec<Rank>,
    outputs: VecDeque<JoinOutput>,
}

/// How far a rank has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinPhase {
    /// It connects to the root of this position among its visits.
    Registering(usize),
    /// It waits until that root, which it only informs, has read where it listens.
    Announcing(usize, Time),
    /// It connects to its parent and waits for its children.
    Connecting,
    /// The rank infos are gathered.
    Gathering,
    /// It has joined or failed.
    Ended,
}

impl JoinCore {
    /// A rank that begins to join.
    pub fn new(now: Time, plan: JoinPlan) -> Self {
        let missing_children = children(plan.rank, plan.nranks).collect();
        let mut core = Self {
            now,
            started: now,
            phase: JoinPhase::Registering(0),
            roots: Vec::new(),
            other_id: None,
            reached: None,
            is_registered: false,
            has_parent: plan.rank == 0,
            missing_children,
            outputs: VecDeque::new(),
            plan,
        };
        core.visit(0);
        core
    }

    /// Handles an input. Deadlines count only at a [`Tick`](JoinInput::Tick): the process may have
    /// been stopped, and what came in time may not have been read yet.
    pub fn handle(&mut self, now: Time, input: JoinInput) {
        self.now = self.now.max(now);
        if self.phase == JoinPhase::Ended {
            return;
        }
        match input {
            JoinInput::RootConnected(root) => self.root_connected(root),
            JoinInput::RootReached(root) => self.reached = Some(root),
            JoinInput::RootRefused(root) => self.root_refused(root),
            JoinInput::RootHasOtherId(root) => self.root_has_other_id(root),
            JoinInput::RootFrame(root, frame) => self.root_frame(root, frame),
            JoinInput::RootMalformed(root) if self.roots.contains(&root) => {
                self.fail(JoinFailure::RootProtocol(root));
            }
            JoinInput::RootClosed(root) => self.root_closed(root),
            JoinInput::RootMalformed(_) => {}
            JoinInput::Tick => self.tick(now),
            JoinInput::ParentConnected => {
                self.has_parent = true;
                // The roots of rank 0 stay until all ranks have joined.
                self.leave_roots();
            }
            JoinInput::ChildConnected(rank) => self.missing_children.retain(|it| *it != rank),
            JoinInput::TreeFailed(verdict) => self.fail(JoinFailure::Verdict(verdict)),
            JoinInput::Gathered if self.phase == JoinPhase::Gathering => {
                self.leave_roots();
                self.phase = JoinPhase::Ended;
                self.outputs.push_back(JoinOutput::Joined);
            }
            JoinInput::Gathered => {}
            JoinInput::Abort => self.fail(JoinFailure::Aborted),
        }
        if self.phase == JoinPhase::Connecting && self.is_connected() {
            self.phase = JoinPhase::Gathering;
            self.outputs.push_back(JoinOutput::TreeComplete);
        }
    }

    /// The next output. Call this until it returns None after every input, and after the start.
    pub fn poll_output(&mut self) -> Option<JoinOutput> {
        self.outputs.pop_front()
    }

    /// When a [`Tick`](JoinInput::Tick) is due.
    pub fn wake(&self) -> Time {
        match self.phase {
            JoinPhase::Registering(at) => self.root_deadline(at),
            JoinPhase::Announcing(_, until) => until,
            JoinPhase::Connecting | JoinPhase::Gathering | JoinPhase::Ended => self.deadline(),
        }
    }

    /// When the rank gives up.
    pub fn deadline(&self) -> Time {
        self.started + self.plan.timeout + GRACE
    }

    /// The roots to which the rank is connected.
    pub fn connected_roots(&self) -> &[usize] {
        &self.roots
    }

    /// Whether the rank has registered at all of its roots.
    pub fn is_registered(&self) -> bool {
        self.is_registered
    }

    /// Whether all neighbours are connected.
    fn is_connected(&self) -> bool {
        self.has_parent && self.missing_children.is_empty()
    }

    /// Does what is due at this time. All that came before it was passed on.
    fn tick(&mut self, now: Time) {
        if let JoinPhase::Announcing(at, until) = self.phase
            && now >= until
        {
            self.announced(at);
        }
        match self.phase {
            JoinPhase::Registering(at) if now >= self.root_deadline(at) => {
                let root = self.plan.visits[at].root;
                self.fail(match self.other_id {
                    Some(root) => JoinFailure::RootHasOtherId(root),
                    None => JoinFailure::RootUnreachable(root),
                });
            }
            JoinPhase::Connecting if now >= self.deadline() && !self.is_connected() => {
                self.time_out();
            }
            _ => {}
        }
    }

    /// Until when the rank tries to connect to a root: earlier than the deadline of the other
    /// ranks, so that they learn the reason and not only that this rank is missing.
    fn root_deadline(&self, at: usize) -> Time {
        let visit = self.plan.visits[at];
        let is_reached = self.reached == Some(visit.root) || visit.appears_later || visit.follows;
        let most = if is_reached { ROOT_ANSWER_TIMEOUT } else { ROOT_TIMEOUT };
        self.started + (self.plan.timeout / 10 * 9).min(most)
    }

    /// Goes to the root of this position, or on to the parent after the last.
    fn visit(&mut self, at: usize) {
        match self.plan.visits.get(at) {
            Some(visit) => {
                self.phase = JoinPhase::Registering(at);
                self.outputs.push_back(JoinOutput::DialRoot(visit.root));
            }
            None => {
                self.is_registered = true;
                self.phase = JoinPhase::Connecting;
            }
        }
    }

    fn root_connected(&mut self, root: usize) {
        let JoinPhase::Registering(at) = self.phase else { return };
        let JoinPlan { rank, host, pid, listener, .. } = &self.plan;
        let visit = self.plan.visits[at];
        if visit.root != root {
            return;
        }
        self.roots.push(root);
        let timeout = (self.started + self.plan.timeout).since(self.now);
        let registration = RankRegistration {
            host: host.clone(),
            pid: *pid,
            timeout,
            listener: listener.clone(),
            share: visit.share,
        };
        let stays = at == 0 || *rank == 0;
        self.outputs.push_back(JoinOutput::SendRoot(root, ControlFrame::Register(registration)));
        if stays {
            return self.visit(at + 1);
        }
        // The root only needs to know where this rank listens.
        self.outputs.push_back(JoinOutput::SendRoot(root, ControlFrame::LeaveRoot));
        self.outputs.push_back(JoinOutput::FinishRoot(root));
        self.phase = JoinPhase::Announcing(at, self.now + LEAVE_TIME);
    }

    /// Where nothing listens now nothing will, unless the root is started while ranks join.
    fn root_refused(&mut self, root: usize) {
        let JoinPhase::Registering(at) = self.phase else { return };
        let visit = self.plan.visits[at];
        if visit.root == root && !visit.appears_later {
            self.fail(match visit.follows {
                true => JoinFailure::Verdict(gone_before_it_joined(0)),
                false => JoinFailure::RootUnreachable(root),
            });
        }
    }

    fn root_has_other_id(&mut self, root: usize) {
        let JoinPhase::Registering(at) = self.phase else { return };
        if self.plan.visits[at].follows {
            self.other_id = Some(root);
        } else {
            self.fail(JoinFailure::RootHasOtherId(root));
        }
    }

    fn root_frame(&mut self, root: usize, frame: ControlFrame) {
        if !self.roots.contains(&root) {
            return;
        }
        match frame {
            ControlFrame::Parent(listener) if parent(self.plan.rank).is_some() => {
                if !self.has_parent {
                    self.outputs.push_back(JoinOutput::DialParent(listener));
                }
            }
            ControlFrame::Parent(_) => {}
            ControlFrame::Missing { ranks, waited } => {
                self.outputs.push_back(JoinOutput::Missing(ranks, waited));
            }
            ControlFrame::Verdict(verdict) => self.fail(JoinFailure::Verdict(verdict)),
            _ => self.fail(JoinFailure::RootProtocol(root)),
        }
    }

    fn root_closed(&mut self, root: usize) {
        match self.phase {
            JoinPhase::Announcing(at, _) if self.plan.visits[at].root == root => self.announced(at),
            _ if self.roots.contains(&root) => self.fail(JoinFailure::RootLost(root)),
            _ => {}
        }
    }

    /// A root that was only informed has read where this rank listens.
    fn announced(&mut self, at: usize) {
        let root = self.plan.visits[at].root;
        self.roots.retain(|other| *other != root);
        self.visit(at + 1);
    }

    /// Tells the roots that this rank does not need them any more.
    fn leave_roots(&mut self) {
        // A root that is only informed was told already.
        let informed = match self.phase {
            JoinPhase::Announcing(at, _) => Some(self.plan.visits[at].root),
            _ => None,
        };
        let (kept, left) = self.roots.iter().partition(|root| Some(**root) == informed);
        self.roots = kept;
        for root in Vec::into_iter(left) {
            self.outputs.push_back(JoinOutput::SendRoot(root, ControlFrame::LeaveRoot));
            self.outputs.push_back(JoinOutput::FinishRoot(root));
        }
    }

    /// Fails with the rank that did not come, if the root did not report it.
    fn time_out(&mut self) {
        let above = parent(self.plan.rank).filter(|_| !self.has_parent);
        let (waiting_for, what) = match (above, self.missing_children.first()) {
            (Some(above), _) => (above, "to take its connection"),
            (None, absent) => (absent.copied().unwrap_or(self.plan.rank), "to connect"),
        };
        let waited = self.now.since(self.started);
        self.fail(JoinFailure::TimedOut { waiting_for, what, waited });
    }

    fn fail(&mut self, failure: JoinFailure) {
        if self.phase != JoinPhase::Ended {
            self.phase = JoinPhase::Ended;
            self.outputs.push_back(JoinOutput::Failed(failure));
        }
    }
}
