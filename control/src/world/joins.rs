//! Worlds in which ranks join through roots: ranks that come late, never, twice, with another
//! number of ranks, that die or whose user aborts while they join. In some of them the ranks are
//! survivors that shrink a communicator, at a root of rank 0, and some have left it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use maypole_algorithms::Rank;

use super::join_script::{JoinFlaw, JoinScript};
use super::random::Random;
use super::rank::{SimulatedFacts, SimulatedRank};
use crate::bootstrap::joining::{
    GRACE, JoinCore, JoinFailure, JoinInput, JoinOutput, JoinPlan, RootVisit,
};
use crate::bootstrap::root::{ConnectionId, RootCore, RootInput, RootOutput};
use crate::communicator::{CommunicatorCore, ControlInput, ControlOutput};
use crate::frame::ControlFrame;
use crate::listener_addresses::ListenerAddresses;
use crate::time::Time;
use crate::tree_shape::parent;
use crate::verdict::Verdict;

/// How long nothing may listen at a root until that is final.
const REFUSED_TIME: Duration = Duration::from_secs(2);
/// When a root first names missing ranks.
const NOTICE: Duration = Duration::from_secs(2);
/// When every join must have ended: after the latest start, the timeout, and the times that ranks
/// and roots leave each other for a verdict.
const END: Duration = Duration::from_secs(40);

#[derive(Clone, Debug)]
enum Event {
    Start(usize),
    Kill(usize),
    Abort(usize),
    /// A process tries to connect to a root.
    Dial(usize, usize),
    RootConnected(usize, usize, ConnectionId),
    ToRoot(usize, ConnectionId, Option<ControlFrame>),
    FromRoot(usize, usize, Option<ControlFrame>),
    RootWake(usize),
    /// A root looks whether a rank can still come.
    Probe(usize, Rank),
    /// A process tries to connect to the process with this number, its parent.
    DialParent(usize, usize),
    ParentConnected(usize, usize),
    Tree(usize, Rank, Option<ControlFrame>),
    Wake(usize),
}

struct Process {
    rank: Rank,
    core: Option<JoinCore>,
    tree: CommunicatorCore,
    /// The connections to roots.
    roots: BTreeMap<usize, ConnectionId>,
    /// The processes of the neighbours.
    neighbours: BTreeMap<Rank, usize>,
    accepts: bool,
    is_alive: bool,
    /// The user has aborted, perhaps before the process began to join.
    has_aborted: bool,
    /// Since when nothing listens where it tries to connect to a root.
    refused_since: Option<Time>,
    outcome: Option<Result<(), JoinFailure>>,
}

struct Root {
    core: RootCore,
    accepts: bool,
    ended: bool,
    connections: BTreeMap<ConnectionId, usize>,
}

/// A world in which ranks join.
pub(super) struct JoinWorld<'a> {
    script: &'a JoinScript,
    now: Time,
    random: Random,
    processes: Vec<Process>,
    roots: Vec<Root>,
    queue: BTreeMap<(Time, u64), Event>,
    queued: u64,
    /// When the last event of a connection arrives, by its ends.
    last: BTreeMap<(u64, u64), Time>,
    next_connection: ConnectionId,
    ranks: Vec<SimulatedRank>,
    broken: Option<String>,
    pub(super) handled: u64,
}

impl<'a> JoinWorld<'a> {
    /// Runs a script to its end.
    ///
    /// # Errors
    /// The invariant that was broken.
    pub(super) fn run(script: &'a JoinScript) -> Result<Self, String> {
        let root = |_| Root {
            core: match script.shrinks {
                false => RootCore::new(Time::START, NOTICE, script.timeout()),
                true => RootCore::of_survivors(Time::START, NOTICE, script.timeout()),
            },
            // That of a shrink begins with rank 0.
            accepts: !script.shrinks,
            ended: false,
            connections: BTreeMap::new(),
        };
        let process = |&(_, rank): &(Duration, Rank)| Process {
            rank,
            core: None,
            tree: CommunicatorCore::new(rank, script.nranks),
            roots: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            accepts: true,
            is_alive: true,
            has_aborted: false,
            refused_since: None,
            outcome: None,
        };
        let facts = |rank| SimulatedRank::new(rank, script.nranks, rank, Vec::new());
        let mut world = Self {
            script,
            now: Time::START,
            random: Random::new(script.seed),
            processes: script.processes.iter().map(process).collect(),
            roots: (0..script.nroots).map(root).collect(),
            queue: BTreeMap::new(),
            queued: 0,
            last: BTreeMap::new(),
            next_connection: 0,
            ranks: (0..script.nranks).map(facts).collect(),
            broken: None,
            handled: 0,
        };
        for (process, (time, _)) in script.processes.iter().enumerate() {
            if script.flaws.contains(&JoinFlaw::Leave(process)) {
                world.queue(Time::START + *time, Event::Kill(process));
            } else {
                world.queue(Time::START + *time, Event::Start(process));
            }
        }
        for flaw in &script.flaws {
            match *flaw {
                JoinFlaw::Kill(process, time) => {
                    world.queue(Time::START + time, Event::Kill(process));
                }
                JoinFlaw::Abort(process, time) => {
                    world.queue(Time::START + time, Event::Abort(process));
                }
                JoinFlaw::OtherCount(_) | JoinFlaw::Leave(_) => {}
            }
        }
        while let Some(((time, _), event)) = world.queue.pop_first() {
            if time > Time::START + END || world.handled > 500_000 {
                break;
            }
            world.now = time;
            world.handled += 1;
            world.happen(event);
            if let Some(broken) = world.broken.take() {
                return Err(broken);
            }
        }
        world.check()?;
        Ok(world)
    }

    fn queue(&mut self, time: Time, event: Event) {
        self.queued += 1;
        self.queue.insert((time, self.queued), event);
    }

    fn later(&mut self) -> Time {
        self.now + self.random.up_to(self.script.delay)
    }

    /// Queues an event of a connection, behind those before it.
    fn queue_in_order(&mut self, ends: (u64, u64), event: Event) {
        let time = self.later();
        let last = self.last.entry(ends).or_default();
        let time = time.max(*last + Duration::from_nanos(1));
        *last = time;
        self.queue(time, event);
    }

    fn send_to_root(&mut self, process: usize, root: usize, frame: Option<ControlFrame>) {
        if let Some(&connection) = self.processes[process].roots.get(&root) {
            let ends = (2 * connection, u64::MAX);
            self.queue_in_order(ends, Event::ToRoot(root, connection, frame));
        }
    }

    fn send_to_neighbour(&mut self, process: usize, rank: Rank, frame: Option<ControlFrame>) {
        if let Some(&other) = self.processes[process].neighbours.get(&rank) {
            let from = self.processes[process].rank;
            self.queue_in_order((process as u64, other as u64), Event::Tree(other, from, frame));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(process) => self.start(process),
            Event::Kill(process) => self.end(process),
            Event::Abort(process) => {
                self.processes[process].has_aborted = true;
                self.join(process, JoinInput::Abort);
            }
            Event::Dial(process, root) => self.dial(process, root),
            Event::RootConnected(process, root, connection) => {
                if self.processes[process].is_alive {
                    self.processes[process].roots.insert(root, connection);
                    self.join(process, JoinInput::RootConnected(root));
                }
            }
            Event::ToRoot(root, connection, frame) => {
                let input = match frame {
                    Some(frame) => RootInput::Frame(connection, frame),
                    None => RootInput::Closed(connection),
                };
                if self.roots[root].connections.contains_key(&connection) {
                    self.root(root, input);
                }
            }
            Event::FromRoot(process, root, frame) => {
                if self.processes[process].roots.contains_key(&root) {
                    let input = match frame {
                        Some(frame) => JoinInput::RootFrame(root, frame),
                        None => JoinInput::RootClosed(root),
                    };
                    self.join(process, input);
                }
            }
            Event::RootWake(root) => self.root(root, RootInput::Tick),
            Event::Probe(root, rank) => {
                // One that has joined or failed may leave the communicator that was shrunk.
                let is_here = |it: &Process| it.is_alive && it.outcome.is_none();
                let mut processes = self.processes.iter();
                if !processes.any(|it| it.rank == rank && is_here(it)) {
                    self.root(root, RootInput::Gone(rank));
                }
            }
            Event::DialParent(process, above) => self.dial_parent(process, above),
            Event::ParentConnected(process, above) => {
                // One that failed meanwhile has told so to the parent.
                if self.processes[process].outcome.is_none() {
                    let rank = self.processes[above].rank;
                    self.processes[process].neighbours.insert(rank, above);
                    self.processes[process].tree.add_neighbour(rank);
                    self.join(process, JoinInput::ParentConnected);
                }
            }
            Event::Tree(process, from, frame) => {
                let input = match frame {
                    Some(frame) => ControlInput::Frame(from, frame),
                    None => ControlInput::Closed(from),
                };
                self.tree(process, input);
            }
            Event::Wake(process) => {
                self.tree(process, ControlInput::Tick);
                self.join(process, JoinInput::Tick);
            }
        }
    }

    fn start(&mut self, process: usize) {
        let script = self.script;
        let (rank, nranks) = (self.processes[process].rank, script.nranks);
        if !self.processes[process].is_alive {
            return;
        }
        let other = self.script.flaws.contains(&JoinFlaw::OtherCount(process));
        let nranks = if other { nranks + 1 } else { nranks };
        let (share, follows) = (|root| script.share(root), script.shrinks);
        let home = (0..self.script.nroots).find(|at| share(*at).serves(rank, nranks)).unwrap_or(0);
        let others =
            (0..self.script.nroots).filter(|at| *at != home && share(*at).expects(rank, nranks));
        let visit = |root| RootVisit { root, share: share(root), follows, appears_later: false };
        if follows && rank == 0 {
            self.roots[0].accepts = true;
        }
        // The port names the process.
        let address = SocketAddr::from(([127, 0, 0, 1], process as u16 + 1));
        let plan = JoinPlan {
            rank,
            nranks,
            visits: [home].into_iter().chain(others).map(visit).collect(),
            timeout: script.timeout(),
            host: String::from("host"),
            pid: process as u32,
            listener: ListenerAddresses { host_tag: 0, addresses: vec![address] },
        };
        self.processes[process].core = Some(JoinCore::new(self.now, plan));
        let has_aborted = self.processes[process].has_aborted;
        self.join(process, if has_aborted { JoinInput::Abort } else { JoinInput::Tick });
    }

    fn dial(&mut self, process: usize, root: usize) {
        let Process { rank, is_alive, ref outcome, .. } = self.processes[process];
        if !is_alive || outcome.is_some() {
            return;
        }
        if self.script.shrinks && !self.processes[0].is_alive {
            // The host of rank 0 refuses connections.
            let since = *self.processes[process].refused_since.get_or_insert(self.now);
            if self.now.since(since) >= REFUSED_TIME {
                return self.join(process, JoinInput::RootRefused(root));
            }
        }
        if !self.roots[root].accepts || self.roots[root].ended {
            let again = self.now + Duration::from_millis(500);
            return self.queue(again, Event::Dial(process, root));
        }
        let connection = self.next_connection;
        self.next_connection += 1;
        let other = self.script.flaws.contains(&JoinFlaw::OtherCount(process));
        let nranks = self.script.nranks + u32::from(other);
        self.roots[root].connections.insert(connection, process);
        self.root(root, RootInput::Connected { connection, rank, nranks });
        let ends = (2 * connection + 1, process as u64);
        self.queue_in_order(ends, Event::RootConnected(process, root, connection));
    }

    fn dial_parent(&mut self, process: usize, above: usize) {
        let (rank, is_waiting) = {
            let it = &self.processes[process];
            (it.rank, it.is_alive && it.outcome.is_none())
        };
        let is_parent = parent(rank) == Some(self.processes[above].rank);
        if !is_waiting {
            return;
        }
        let parent_process = &self.processes[above];
        if !parent_process.is_alive || !parent_process.accepts || !is_parent {
            let again = self.now + Duration::from_millis(500);
            return self.queue(again, Event::DialParent(process, above));
        }
        self.processes[above].neighbours.insert(rank, process);
        self.processes[above].tree.add_neighbour(rank);
        let ends = (above as u64, process as u64);
        self.queue_in_order(ends, Event::ParentConnected(process, above));
        self.join(above, JoinInput::ChildConnected(rank));
    }

    /// Passes an input to a root, and does what it wants.
    fn root(&mut self, root: usize, input: RootInput) {
        self.roots[root].core.handle(self.now, input);
        while let Some(output) = self.roots[root].core.poll_output() {
            match output {
                RootOutput::Send(connection, frame) => {
                    self.send_from_root(root, connection, Some(frame));
                }
                RootOutput::Finish(connection) => self.send_from_root(root, connection, None),
                RootOutput::Close(connection) => {
                    self.send_from_root(root, connection, None);
                    self.roots[root].connections.remove(&connection);
                }
                RootOutput::StopAccepting => self.roots[root].accepts = false,
                RootOutput::Ended(_) => self.roots[root].ended = true,
                RootOutput::Probe(ranks) => {
                    for rank in ranks {
                        let time = self.later();
                        self.queue(time, Event::Probe(root, rank));
                    }
                }
                RootOutput::Refused { .. }
                | RootOutput::Missing(..)
                | RootOutput::Failed(_)
                | RootOutput::Lost(_) => {}
            }
        }
        if !self.roots[root].ended {
            let wake = self.roots[root].core.wake();
            if wake <= Time::START + END {
                self.queue(wake + Duration::from_nanos(1), Event::RootWake(root));
            }
        }
    }

    fn send_from_root(
        &mut self,
        root: usize,
        connection: ConnectionId,
        frame: Option<ControlFrame>,
    ) {
        if let Some(&process) = self.roots[root].connections.get(&connection) {
            let ends = (2 * connection + 1, process as u64);
            self.queue_in_order(ends, Event::FromRoot(process, root, frame));
        }
    }

    /// Passes an input to the join of a process, and does what it wants.
    fn join(&mut self, process: usize, input: JoinInput) {
        if !self.processes[process].is_alive || self.processes[process].outcome.is_some() {
            return;
        }
        let Some(mut core) = self.processes[process].core.take() else { return };
        core.handle(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = core.poll_output() {
            outputs.push(output);
        }
        let wake = core.wake();
        self.processes[process].core = Some(core);
        if wake > self.now {
            self.queue(wake, Event::Wake(process));
        }
        for output in outputs {
            match output {
                JoinOutput::DialRoot(root) => {
                    let time = self.later();
                    self.queue(time, Event::Dial(process, root));
                }
                JoinOutput::SendRoot(root, frame) => self.send_to_root(process, root, Some(frame)),
                JoinOutput::FinishRoot(root) => {
                    self.send_to_root(process, root, None);
                    // As in a program: only a root that is informed is listened to after that.
                    let core = self.processes[process].core.as_ref();
                    if core.is_none_or(|core| !core.connected_roots().contains(&root)) {
                        self.processes[process].roots.remove(&root);
                    }
                }
                JoinOutput::DialParent(listener) => {
                    let above = usize::from(listener.addresses[0].port()) - 1;
                    let time = self.later();
                    self.queue(time, Event::DialParent(process, above));
                }
                JoinOutput::Missing(ranks, waited) => {
                    self.processes[process].tree.report_missing(ranks, waited);
                    self.carry_out_tree(process);
                }
                JoinOutput::TreeComplete => {
                    self.processes[process].accepts = false;
                    let bytes = self.processes[process].rank.to_le_bytes().to_vec();
                    let started = Time::START + self.script.processes[process].0;
                    let deadline = started + self.script.timeout() + GRACE;
                    self.tree(process, ControlInput::Exchange { bytes, deadline });
                }
                JoinOutput::Failed(failure) => self.fail(process, failure),
                JoinOutput::Joined => self.processes[process].outcome = Some(Ok(())),
            }
        }
    }

    /// A process failed: it tells its roots and neighbours, and closes its connections.
    fn fail(&mut self, process: usize, failure: JoinFailure) {
        let rank = self.processes[process].rank;
        let verdict = match &failure {
            JoinFailure::Aborted => Verdict::Aborted { by: rank },
            JoinFailure::Verdict(verdict) => verdict.clone(),
            other => Verdict::Failed { rank, why: format!("{other:?}") },
        };
        let ends_attempt = match &failure {
            JoinFailure::Aborted => true,
            JoinFailure::Verdict(verdict) => matches!(
                verdict,
                Verdict::Aborted { .. }
                    | Verdict::MissingRanks { .. }
                    | Verdict::Dead { .. }
                    | Verdict::Failed { .. }
                    | Verdict::Timeout { .. }
            ),
            _ => false,
        };
        self.processes[process].outcome = Some(Err(failure));
        self.tree(process, ControlInput::Decide(verdict.clone()));
        self.take_accepted(process);
        if let Some(above) = parent(rank) {
            self.send_to_neighbour(process, above, Some(ControlFrame::Verdict(verdict.clone())));
        }
        let roots: Vec<usize> = self.processes[process].roots.keys().copied().collect();
        let is_registered =
            self.processes[process].core.as_ref().is_some_and(JoinCore::is_registered);
        for root in 0..self.roots.len() {
            let frame = ControlFrame::Verdict(verdict.clone());
            if roots.contains(&root) {
                self.send_to_root(process, root, Some(frame));
            } else if !is_registered
                && (rank == 0
                    || self.script.share(root).serves(rank, self.script.nranks)
                    || ends_attempt && self.script.share(root).expects(rank, self.script.nranks))
                && !self.roots[root].ended
                && self.roots[root].accepts
            {
                // It connects once more to say that it will not come.
                let connection = self.next_connection;
                self.next_connection += 1;
                self.roots[root].connections.insert(connection, process);
                let nranks = self.script.nranks;
                self.root(root, RootInput::Connected { connection, rank, nranks });
                self.root(root, RootInput::Frame(connection, frame));
            }
        }
        self.close_all(process);
    }

    /// A process ends, and the root of a shrink with that of rank 0.
    fn end(&mut self, process: usize) {
        self.processes[process].is_alive = false;
        self.take_accepted(process);
        self.close_all(process);
        if self.script.shrinks && process == 0 {
            self.roots[0].ended = true;
            let connections: Vec<ConnectionId> =
                self.roots[0].connections.keys().copied().collect();
            for connection in connections {
                self.send_from_root(0, connection, None);
            }
            self.roots[0].connections.clear();
        }
    }

    /// Takes the connection that the parent has accepted, and of which the process does not know.
    fn take_accepted(&mut self, process: usize) {
        let rank = self.processes[process].rank;
        let accepts = |it: &Process| it.neighbours.get(&rank) == Some(&process);
        let above = parent(rank).and_then(|above| {
            let is_it = |it: &Process| it.rank == above && accepts(it);
            Some((above, self.processes.iter().position(is_it)?))
        });
        self.processes[process].neighbours.extend(above);
    }

    fn close_all(&mut self, process: usize) {
        let roots: Vec<usize> = self.processes[process].roots.keys().copied().collect();
        roots.into_iter().for_each(|root| self.send_to_root(process, root, None));
        let neighbours: Vec<Rank> = self.processes[process].neighbours.keys().copied().collect();
        neighbours.into_iter().for_each(|rank| self.send_to_neighbour(process, rank, None));
        self.processes[process].neighbours.clear();
        self.processes[process].accepts = false;
    }

    /// Passes an input to the control tree of a process, and does what it wants.
    fn tree(&mut self, process: usize, input: ControlInput) {
        if !self.processes[process].is_alive {
            return;
        }
        let rank = self.processes[process].rank;
        let facts = SimulatedFacts { rank, ranks: &self.ranks };
        self.processes[process].tree.handle(self.now, input, &facts);
        self.carry_out_tree(process);
        if let Some(wake) = self.processes[process].tree.wake() {
            self.queue(wake.max(self.now + Duration::from_nanos(1)), Event::Wake(process));
        }
    }

    fn carry_out_tree(&mut self, process: usize) {
        while let Some(output) = self.processes[process].tree.poll_output() {
            match output {
                ControlOutput::Send(rank, frame) => {
                    self.send_to_neighbour(process, rank, Some(frame))
                }
                ControlOutput::Close(rank) => {
                    self.send_to_neighbour(process, rank, None);
                    self.processes[process].neighbours.remove(&rank);
                }
                ControlOutput::Ended(verdict) => {
                    self.join(process, JoinInput::TreeFailed(verdict));
                }
                ControlOutput::Exchanged(Ok(infos)) => {
                    let expected = (0..self.script.nranks).map(|rank| rank.to_le_bytes().to_vec());
                    if !expected.eq(infos) {
                        self.broken = Some(format!("process {process} got wrong rank infos"));
                    }
                    self.join(process, JoinInput::Gathered);
                }
                _ => {}
            }
        }
    }

    /// What must hold at the end.
    fn check(&self) -> Result<(), String> {
        let script = self.script;
        for (number, process) in self.processes.iter().enumerate() {
            if process.is_alive && process.outcome.is_none() {
                return Err(format!(
                    "process {number}, rank {}, still joins at the end",
                    process.rank
                ));
            }
        }
        for (number, root) in self.roots.iter().enumerate() {
            if !root.ended && root.core.registered() > 0 {
                return Err(format!("root {number} does not end"));
            }
        }
        let present: BTreeSet<Rank> = script.processes.iter().map(|(_, rank)| *rank).collect();
        let is_duplicated = script.processes.len() > present.len();
        let outcomes = || self.processes.iter().map(|process| process.outcome.clone());
        if script.flaws.is_empty() && !is_duplicated && present.len() == script.nranks as usize {
            let all = outcomes().all(|outcome| matches!(outcome, Some(Ok(()))));
            return if all { Ok(()) } else { Err(String::from("not all ranks joined")) };
        }
        // With several roots, each of two processes of one rank may be the first at one of them.
        if is_duplicated && script.flaws.is_empty() && script.nroots == 1 {
            let failed = outcomes().filter(|outcome| !matches!(outcome, Some(Ok(())))).count();
            if failed != 1 {
                return Err(format!("{failed} processes failed because one came twice"));
            }
        }
        if present.len() < script.nranks as usize && script.flaws.is_empty() {
            let missing = (0..script.nranks).find(|rank| !present.contains(rank));
            // A deep tree with slow connections may not pass the verdict on in time.
            // Nor does a root know the deadlines of ranks that register at others.
            let is_slow = script.delay > Duration::from_millis(200) || script.nroots > 1;
            for outcome in outcomes() {
                if is_slow && matches!(outcome, Some(Err(_))) {
                    continue;
                }
                let Some(Err(JoinFailure::Verdict(Verdict::MissingRanks { ranks, .. }))) = &outcome
                else {
                    return Err(format!("a rank is missing, and another has {outcome:?}"));
                };
                if ranks.ranges() != [(missing.unwrap_or(0), missing.unwrap_or(0))] {
                    return Err(format!("rank {missing:?} is missing, and {ranks} are named"));
                }
            }
        }
        // All learn which survivor is gone, long before the timeout.
        if let ([JoinFlaw::Leave(gone) | JoinFlaw::Kill(gone, _)], true) =
            (&script.flaws[..], script.shrinks)
        {
            let (gone, left) = (*gone as Rank, matches!(script.flaws[0], JoinFlaw::Leave(_)));
            let alive = self.processes.iter().filter(|process| process.is_alive);
            for (rank, outcome) in alive.map(|process| (process.rank, &process.outcome)) {
                let names_it = match outcome {
                    Some(Err(JoinFailure::Verdict(
                        Verdict::Dead { rank: told, .. } | Verdict::Failed { rank: told, .. },
                    ))) => *told == gone || gone == 0,
                    Some(Err(JoinFailure::RootLost(_))) => gone == 0,
                    Some(Err(_)) | None => false,
                    Some(Ok(())) => !left,
                };
                if !names_it {
                    return Err(format!("rank {gone} is gone, and rank {rank} has {outcome:?}"));
                }
            }
        }
        // An abort or a death while ranks join ends all of them, or comes too late for all.
        if let [JoinFlaw::Abort(by, _)] = script.flaws[..] {
            let by = self.processes[by].rank;
            for outcome in outcomes().flatten().filter_map(Result::err) {
                // It may have left before there was a root that it could tell. Without rank 0
                // nothing connects the ranks at two roots, but then only that rank is missing.
                let is_told = match &outcome {
                    JoinFailure::Aborted | JoinFailure::Verdict(Verdict::Aborted { .. }) => true,
                    JoinFailure::Verdict(Verdict::Failed { rank, .. }) => {
                        script.shrinks && *rank == by
                    }
                    JoinFailure::Verdict(Verdict::MissingRanks { ranks, .. }) => {
                        script.nroots > 1 && !present.contains(&0) && ranks.ranges() == [(0, 0)]
                    }
                    _ => false,
                };
                if !is_told {
                    return Err(format!("rank {by} aborted, and another has {outcome:?}"));
                }
            }
        }
        Ok(())
    }
}
