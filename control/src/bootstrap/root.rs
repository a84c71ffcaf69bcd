//! A bootstrap root. It never waits for a single connection, and ends when all ranks have left.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use maypole_algorithms::Rank;

use crate::frame::{ControlFrame, RankRegistration};
use crate::listener_addresses::ListenerAddresses;
use crate::rank_set::RankSet;
use crate::root_share::RootShare;
use crate::time::Time;
use crate::tree_shape::{children, parent};
use crate::verdict::Verdict;

/// How long the root stays when no rank is connected to it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a rank whose handshake succeeded may take to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time after which missing ranks are named. It is doubled each time, so it must not be
/// zero.
const SHORTEST_NOTICE: Duration = Duration::from_millis(10);
/// How much longer than the deadline the root waits when all ranks have come, for them to find out
/// which rank delays the others.
const VERDICT_TIME: Duration = Duration::from_secs(10);

/// When a root of a shrink first looks whether missing ranks can still come. The time doubles.
const FIRST_PROBE: Duration = Duration::from_millis(250);

/// Names a connection of a root.
pub type ConnectionId = u64;

/// What happens to a root.
#[derive(Clone, Debug)]
pub enum RootInput {
    /// A rank has connected, and its handshake succeeded.
    Connected {
        /// The connection.
        connection: ConnectionId,
        /// The rank.
        rank: Rank,
        /// The number of ranks, as the rank says.
        nranks: u32,
    },
    /// A rank sent a frame.
    Frame(ConnectionId, ControlFrame),
    /// A rank sent bytes that are not a frame.
    Malformed(ConnectionId),
    /// A connection ended.
    Closed(ConnectionId),
    /// The answer to [`RootOutput::Probe`] for a rank: it has left the communicator that is shrunk,
    /// or its process has ended.
    Gone(Rank),
    /// Everything that came before the given time has been passed on: deadlines before it count.
    Tick,
}

/// What a root wants to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootOutput {
    /// Send a frame.
    Send(ConnectionId, ControlFrame),
    /// Send nothing more on this connection after what was sent, and close it.
    Finish(ConnectionId),
    /// Close this connection.
    Close(ConnectionId),
    /// Accept no more connections: a new one would be for another communicator.
    StopAccepting,
    /// Log that a process was refused.
    Refused {
        /// The number of the process.
        pid: u32,
        /// The name of its host.
        host: String,
        /// Why.
        objection: Verdict,
    },
    /// Log that these ranks have not joined after this time.
    Missing(RankSet, Duration),
    /// Log why the attempt has ended.
    Failed(Verdict),
    /// Look which of these ranks can still come, and answer by [`RootInput::Gone`] for those that
    /// cannot.
    Probe(Vec<Rank>),
    /// Log that this rank has gone, or has broken the protocol, before it was served.
    Lost(Rank),
    /// The root has ended. True if all ranks were served.
    Ended(bool),
}

/// A bootstrap root.
#[derive(Debug)]
pub struct RootCore {
    now: Time,
    /// Connections whose rank has not registered.
    unregistered: BTreeMap<ConnectionId, UnregisteredRank>,
    /// The ranks that have registered.
    ranks: BTreeMap<Rank, RegisteredRank>,
    /// The rank of each connection of a registered rank.
    connections: BTreeMap<ConnectionId, Rank>,
    /// The number of ranks, as the first rank says.
    nranks: Option<u32>,
    /// The share of this root, as the first rank says, and how many ranks register here.
    share: Option<(RootShare, usize)>,
    /// When the first rank came.
    started: Option<Time>,
    /// The earliest deadline of all ranks.
    deadline: Option<Time>,
    /// Why the attempt has ended. Ranks that come later get it too.
    verdict: Option<Verdict>,
    /// How long a root that has failed stays for ranks that come later.
    stay: Duration,
    /// The time since the start after which missing ranks are named next.
    next_notice: Duration,
    /// For a shrink, whose ranks come once: the time since the start after which missing ranks are
    /// looked for next.
    next_probe: Option<Duration>,
    /// When a rank was last connected.
    idle_since: Time,
    accepting: bool,
    ended: bool,
    outputs: VecDeque<RootOutput>,
}

/// The verdict about a survivor that cannot join a shrink.
pub(super) fn gone_before_it_joined(rank: Rank) -> Verdict {
    let why = String::from(
        "before it joined, it left the communicator that is shrunk, or its process ended",
    );
    Verdict::Failed { rank, why }
}

/// A rank whose handshake succeeded and that has not registered.
#[derive(Debug)]
struct UnregisteredRank {
    rank: Rank,
    nranks: u32,
    deadline: Time,
}

/// A registered rank.
#[derive(Debug, Default)]
struct RegisteredRank {
    host: String,
    pid: u32,
    listener: ListenerAddresses,
    /// The connection; None after the rank has left.
    connection: Option<ConnectionId>,
}

impl RootCore {
    /// A root that names missing ranks after `notice`. If the attempt fails it stays for `stay`, so
    /// that ranks that come later learn why.
    pub fn new(now: Time, notice: Duration, stay: Duration) -> Self {
        Self {
            now,
            unregistered: BTreeMap::new(),
            ranks: BTreeMap::new(),
            connections: BTreeMap::new(),
            nranks: None,
            share: None,
            started: None,
            deadline: None,
            verdict: None,
            stay,
            next_notice: notice.max(SHORTEST_NOTICE),
            next_probe: None,
            idle_since: now,
            accepting: true,
            ended: false,
            outputs: VecDeque::new(),
        }
    }

    /// The same for a shrink. Its ranks are survivors of a communicator, so a rank that is gone
    /// does not come again.
    pub fn of_survivors(now: Time, notice: Duration, stay: Duration) -> Self {
        Self { next_probe: Some(FIRST_PROBE), ..Self::new(now, notice, stay) }
    }

    /// Handles an input. Deadlines count only at a [`Tick`](RootInput::Tick): the process may have
    /// been stopped, and what came in time may not have been read yet.
    pub fn handle(&mut self, now: Time, input: RootInput) {
        self.now = self.now.max(now);
        if self.ended {
            return;
        }
        match input {
            RootInput::Connected { connection, rank, nranks } => {
                let deadline = self.now + REGISTER_TIMEOUT;
                let unregistered = UnregisteredRank { rank, nranks, deadline };
                self.unregistered.insert(connection, unregistered);
            }
            RootInput::Frame(connection, frame) => match self.unregistered.remove(&connection) {
                Some(unregistered) => self.first_frame(connection, &unregistered, frame),
                None => self.later_frame(connection, frame),
            },
            RootInput::Malformed(connection) => self.broke_protocol(connection),
            RootInput::Closed(connection) => self.closed(connection),
            RootInput::Gone(rank) => self.gone(rank),
            RootInput::Tick => return self.tick(now),
        }
        self.advance();
    }

    /// The next output. Call this until it returns None after every input.
    pub fn poll_output(&mut self) -> Option<RootOutput> {
        self.outputs.pop_front()
    }

    /// When a [`Tick`](RootInput::Tick) is due.
    pub fn wake(&self) -> Time {
        let notice = self.started.filter(|_| self.verdict.is_none());
        let looks = self.next_notice.min(self.next_probe.unwrap_or(Duration::MAX));
        let notice = notice.map(|started| started + looks);
        let unregistered = self.unregistered.values().map(|rank| rank.deadline).min();
        [notice, unregistered, self.give_up_at()]
            .into_iter()
            .flatten()
            .fold(self.idle_since + IDLE_TIMEOUT, Time::min)
    }

    /// The time since the first rank came.
    pub fn waited(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| self.now.since(started))
    }

    /// The number of ranks that have registered.
    pub fn registered(&self) -> usize {
        self.ranks.len()
    }

    /// The number of ranks, as the first rank says; 0 before it.
    pub fn nranks(&self) -> u32 {
        self.nranks.unwrap_or(0)
    }

    /// Does what is due at this time. All that came before it was passed on.
    fn tick(&mut self, now: Time) {
        let late: Vec<ConnectionId> = self
            .unregistered
            .iter()
            .filter(|(_, rank)| rank.deadline <= now)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in late {
            self.unregistered.remove(&connection);
            self.outputs.push_back(RootOutput::Close(connection));
        }
        self.advance();
        if self.ended {
            return;
        }
        if self.give_up_at().is_some_and(|end| end <= now) {
            if !self.is_complete() && self.verdict.is_none() {
                let verdict = Verdict::MissingRanks {
                    ranks: self.missing(),
                    nranks: self.nranks(),
                    waited: self.waited(),
                };
                self.outputs.push_back(RootOutput::Failed(verdict.clone()));
                self.send_to_all(&ControlFrame::Verdict(verdict));
            }
            return self.end(false);
        }
        if now >= self.idle_since + IDLE_TIMEOUT {
            return self.end(false);
        }
        self.notify();
    }

    /// Stops to accept connections, or ends, when that is possible.
    fn advance(&mut self) {
        if !self.connections.is_empty() || !self.unregistered.is_empty() {
            self.idle_since = self.now;
        }
        // Only rank 0 is left, to collect rank infos.
        if self.accepting && self.is_complete() && self.connections.len() <= 1 {
            self.accepting = false;
            self.outputs.push_back(RootOutput::StopAccepting);
        }
        if self.connections.is_empty() && (self.is_complete() || self.have_all_failed()) {
            self.end(self.is_complete());
        }
    }

    /// When the root gives up. If all ranks have come, but one is not connected to its parent or
    /// does not send its rank info, the ranks know better which one, so they get time to report it.
    fn give_up_at(&self) -> Option<Time> {
        let grace = if self.is_complete() { VERDICT_TIME } else { Duration::ZERO };
        self.deadline.map(|deadline| deadline + grace)
    }

    /// Handles the first frame of a connection.
    fn first_frame(
        &mut self,
        connection: ConnectionId,
        unregistered: &UnregisteredRank,
        frame: ControlFrame,
    ) {
        let UnregisteredRank { rank, nranks, .. } = *unregistered;
        match frame {
            ControlFrame::Register(registration) => {
                self.register((rank, nranks), registration, connection);
            }
            // The rank failed before it registered. If another process has registered as this rank,
            // the job goes on without this one.
            ControlFrame::Verdict(verdict) => {
                self.outputs.push_back(RootOutput::Close(connection));
                let same_nranks = *self.nranks.get_or_insert(nranks) == nranks;
                if same_nranks && !self.ranks.contains_key(&rank) {
                    self.ranks.insert(rank, RegisteredRank::default());
                    self.fail_all(verdict);
                }
            }
            _ => {
                self.outputs.push_back(RootOutput::Lost(rank));
                self.outputs.push_back(RootOutput::Close(connection));
            }
        }
    }

    /// Registers a rank, or refuses it.
    fn register(
        &mut self,
        (rank, theirs): (Rank, u32),
        registration: RankRegistration,
        connection: ConnectionId,
    ) {
        let nranks = *self.nranks.get_or_insert(theirs);
        let own_share = (registration.share, registration.share.expected(nranks));
        let (share, _) = *self.share.get_or_insert(own_share);
        let objection = if nranks != theirs {
            Some(Verdict::DifferentRankCount { rank, ours: theirs, theirs: nranks })
        } else if share != registration.share {
            Some(Verdict::Disagreement {
                what: String::from("the unique ids, their number or their order"),
                ranks: RankSet::new([rank]),
            })
        } else {
            let first = self.ranks.get(&rank);
            let duplicate = |first: &RegisteredRank| Verdict::DuplicateRank {
                rank,
                host: first.host.clone(),
                pid: first.pid,
            };
            first.map(duplicate)
        };
        if let Some(objection) = objection {
            let RankRegistration { host, pid, .. } = registration;
            self.send(connection, ControlFrame::Verdict(objection.clone()));
            self.outputs.push_back(RootOutput::Finish(connection));
            return self.outputs.push_back(RootOutput::Refused { pid, host, objection });
        }
        self.started.get_or_insert(self.now);
        self.connections.insert(connection, rank);
        if let Some(verdict) = self.verdict.clone() {
            self.send(connection, ControlFrame::Verdict(verdict));
            self.outputs.push_back(RootOutput::Finish(connection));
            let entry =
                RegisteredRank { connection: Some(connection), ..RegisteredRank::default() };
            self.ranks.insert(rank, entry);
            return;
        }
        let deadline = self.now + registration.timeout;
        self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));
        let served = |rank: &Rank| share.serves(*rank, nranks);
        let above = parent(rank).filter(|_| served(&rank));
        if let Some(above) = above.and_then(|above| self.ranks.get(&above)) {
            let frame = ControlFrame::Parent(above.listener.clone());
            self.send(connection, frame);
        }
        for child in children(rank, nranks).filter(served) {
            if let Some(connection) = self.ranks.get(&child).and_then(|it| it.connection) {
                self.send(connection, ControlFrame::Parent(registration.listener.clone()));
            }
        }
        let RankRegistration { host, pid, listener, .. } = registration;
        let entry = RegisteredRank { host, pid, listener, connection: Some(connection) };
        self.ranks.insert(rank, entry);
    }

    /// Handles a frame of a registered rank.
    fn later_frame(&mut self, connection: ConnectionId, frame: ControlFrame) {
        let Some(&rank) = self.connections.get(&connection) else { return };
        match frame {
            ControlFrame::LeaveRoot => self.disconnect(connection, rank),
            ControlFrame::Verdict(verdict) => {
                self.disconnect(connection, rank);
                self.fail_all(verdict);
            }
            _ => self.broke_protocol(connection),
        }
    }

    /// A connection ended.
    fn closed(&mut self, connection: ConnectionId) {
        if let Some(unregistered) = self.unregistered.remove(&connection) {
            self.outputs.push_back(RootOutput::Lost(unregistered.rank));
        }
        let Some(&rank) = self.connections.get(&connection) else { return };
        self.disconnect(connection, rank);
        if self.next_probe.is_some() {
            self.fail_all(Verdict::Dead { rank, seen_by: 0 });
        } else if self.verdict.is_none() {
            // The rank may come again; its children will then learn where it listens.
            self.ranks.remove(&rank);
            self.outputs.push_back(RootOutput::Lost(rank));
        }
    }

    /// A rank cannot come any more. Nothing is known of one that has come before.
    fn gone(&mut self, rank: Rank) {
        let is_missing = self.next_probe.is_some() && rank < self.nranks();
        if is_missing && !self.ranks.contains_key(&rank) {
            self.ranks.insert(rank, RegisteredRank::default());
            self.fail_all(gone_before_it_joined(rank));
        }
    }

    /// A rank sent what it must not send. It may come again.
    fn broke_protocol(&mut self, connection: ConnectionId) {
        if let Some(unregistered) = self.unregistered.remove(&connection) {
            self.outputs.push_back(RootOutput::Lost(unregistered.rank));
            self.outputs.push_back(RootOutput::Close(connection));
        }
        let Some(&rank) = self.connections.get(&connection) else { return };
        self.disconnect(connection, rank);
        self.ranks.remove(&rank);
        self.outputs.push_back(RootOutput::Lost(rank));
    }

    /// Closes the connection of a rank, which stays registered.
    fn disconnect(&mut self, connection: ConnectionId, rank: Rank) {
        self.connections.remove(&connection);
        if let Some(entry) = self.ranks.get_mut(&rank) {
            entry.connection = None;
        }
        self.outputs.push_back(RootOutput::Close(connection));
    }

    /// Sends the verdict of a rank that gave up to all ranks, which then wait no longer.
    fn fail_all(&mut self, verdict: Verdict) {
        if self.verdict.is_some() {
            return;
        }
        self.outputs.push_back(RootOutput::Failed(verdict.clone()));
        self.send_to_all(&ControlFrame::Verdict(verdict.clone()));
        let finish = self.connections.keys().map(|connection| RootOutput::Finish(*connection));
        self.outputs.extend(finish);
        self.verdict = Some(verdict);
        // Ranks that come later get the verdict too, until the time at which the root would have
        // given up.
        self.started.get_or_insert(self.now);
        self.deadline.get_or_insert(self.now + self.stay);
    }

    /// Names the missing ranks, and looks for them, when it is time.
    fn notify(&mut self) {
        if self.verdict.is_some() || self.started.is_none() {
            return;
        }
        let waited = self.waited();
        if let Some(next) = self.next_probe.as_mut()
            && *next <= waited
        {
            while *next <= waited {
                *next = next.saturating_mul(2);
            }
            let present = |rank: &Rank| self.ranks.contains_key(rank);
            let missing: Vec<Rank> = (0..self.nranks()).filter(|it| !present(it)).collect();
            if !missing.is_empty() {
                self.outputs.push_back(RootOutput::Probe(missing));
            }
        }
        if waited < self.next_notice {
            return;
        }
        let ranks = self.missing();
        while self.next_notice <= waited {
            self.next_notice = self.next_notice.saturating_mul(2);
        }
        if !ranks.is_empty() {
            self.outputs.push_back(RootOutput::Missing(ranks.clone(), waited));
            self.send_to_all(&ControlFrame::Missing { ranks, waited });
        }
    }

    /// Ends the root. All connected ranks have been informed.
    fn end(&mut self, served: bool) {
        self.ended = true;
        let finish = self.connections.keys().map(|connection| RootOutput::Finish(*connection));
        self.outputs.extend(finish);
        self.outputs.push_back(RootOutput::Ended(served));
    }

    fn is_complete(&self) -> bool {
        self.share.is_some_and(|(_, expected)| self.ranks.len() == expected)
    }

    /// Whether every rank gave up before any of them had registered.
    fn have_all_failed(&self) -> bool {
        let has_failed = self.verdict.is_some() && self.share.is_none();
        has_failed && self.nranks.is_some_and(|nranks| self.ranks.len() == nranks as usize)
    }

    fn send(&mut self, connection: ConnectionId, frame: ControlFrame) {
        self.outputs.push_back(RootOutput::Send(connection, frame));
    }

    fn send_to_all(&mut self, frame: &ControlFrame) {
        let send = |connection: &ConnectionId| RootOutput::Send(*connection, frame.clone());
        self.outputs.extend(self.connections.keys().map(send));
    }

    /// The missing ranks among those that register at this root; of others only other roots know.
    fn missing(&self) -> RankSet {
        let (Some((share, _)), Some(nranks)) = (self.share, self.nranks) else {
            return RankSet::new([]);
        };
        let mut missing = RankSet::new([]);
        for range in share.visitors(nranks) {
            let present = self.ranks.range(range.clone()).map(|(rank, _)| *rank);
            missing.add_missing(present, range);
        }
        missing
    }
}
