//! The events of a simulated world, one after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use maypole_algorithms::Rank;

use super::random::Random;
use super::rank::{SimulatedFacts, SimulatedProcess, SimulatedRank, SimulatedThread};
use super::script::{Action, Disturbance, Script};
use super::truth::Truth;
use crate::activity::{Activity, HistoryPoint};
use crate::communicator::{ControlInput, ControlOutput, ControlTiming};
use crate::frame::{ControlFrame, FrameHeader, HEADER_BYTES, most_items};
use crate::long_wait::{LongWait, WaitStep};
use crate::time::Time;
use crate::tree_shape::{children, parent};
use crate::verdict::Verdict;

/// How long a world runs after the last disturbance, at most.
const HORIZON: Duration = Duration::from_secs(300);
/// How long an exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a verdict may take to a rank whose links were aborted.
const VERDICT_TIME: Duration = Duration::from_secs(2);

/// Something that happens to a rank.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A frame of a neighbour arrives.
    Frame(Rank, Vec<u8>),
    /// The connection to a neighbour ends.
    Closed(Rank),
    /// The process of a neighbour has ended.
    ProcessEnded(Rank),
    /// A message of a call arrives: sender, number of the call, tag.
    Message(Rank, u64, u64),
    /// A rank announces on its links that it leaves.
    LinkLeft(Rank),
    /// The link to a rank on another host ends, because its process has ended.
    LinkDied(Rank),
    /// A rank aborts its links. None if the reason goes over the control tree.
    LinkAborted(Option<Verdict>),
    /// The thread of the user goes on.
    Thread,
    /// A deadline has come.
    Wake,
    /// The script disturbs the rank.
    Disturbed(Disturbance),
    /// A stopped process goes on.
    Resume,
}

/// A world.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) ranks: Vec<SimulatedRank>,
    pub(super) truth: Truth,
    timing: ControlTiming,
    delay: Duration,
    random: Random,
    /// The events to come, by their time and the order in which they were queued.
    queue: BTreeMap<(Time, u64), (Rank, Event)>,
    queued: u64,
    /// When the last frame or end of each connection arrives, by receiver and sender.
    last_arrival: BTreeMap<(Rank, Rank), Time>,
    /// The same for the links, over which messages go.
    last_message: BTreeMap<(Rank, Rank), Time>,
    /// Until when nothing passes between a rank and its parent, by the rank.
    stalled: BTreeMap<Rank, Time>,
    /// The number of events that were handled.
    pub(super) handled: u64,
}

impl World {
    /// Runs a script to its end.
    ///
    /// # Errors
    /// The invariant that was broken.
    pub(super) fn run(script: &Script) -> Result<Self, String> {
        let mut world = Self::new(script);
        let last = script.disturbances.iter().map(|(time, _)| *time).max().unwrap_or_default();
        let computes = script.programs.iter().flatten().map(|action| match action {
            Action::Compute(time) => *time,
            _ => Duration::ZERO,
        });
        let end = Time::START + last + computes.sum() + HORIZON;
        while let Some(((time, _), (rank, event))) = world.queue.pop_first() {
            world.now = time;
            world.handled += 1;
            world.happen(rank, event);
            if let Some(broken) = world.truth.broken.take() {
                return Err(broken);
            }
            if world.ranks.iter().all(|rank| !rank.is_alive() || rank.has_left()) {
                break;
            }
            if time > end || world.handled > world.truth.most_events {
                break;
            }
        }
        world.check_end()?;
        Ok(world)
    }

    fn new(script: &Script) -> Self {
        let nranks = script.nranks();
        let timing = ControlTiming {
            report: Duration::from_secs(1),
            timeout: script.timeout,
            compare: Duration::from_secs(1),
        };
        let rank = |rank: Rank| {
            let (host, program) = (script.hosts[rank as usize], &script.programs[rank as usize]);
            let mut simulated = SimulatedRank::new(rank, nranks, host, program.clone());
            let neighbours: Vec<Rank> =
                parent(rank).into_iter().chain(children(rank, nranks)).collect();
            if let Some(core) = &mut simulated.core {
                neighbours.iter().for_each(|neighbour| core.add_neighbour(*neighbour));
                core.start_service(timing, Time::START);
            }
            simulated.connections = neighbours;
            simulated
        };
        let mut world = Self {
            now: Time::START,
            ranks: (0..nranks).map(rank).collect(),
            truth: Truth::new(script),
            timing,
            delay: script.delay,
            random: Random::new(script.seed ^ 0x5eed),
            queue: BTreeMap::new(),
            queued: 0,
            last_arrival: BTreeMap::new(),
            last_message: BTreeMap::new(),
            stalled: BTreeMap::new(),
            handled: 0,
        };
        for rank in 0..nranks {
            world.thread_goes_on(rank);
            world.queue_wake(rank);
        }
        for (time, disturbance) in &script.disturbances {
            let event = Event::Disturbed(*disturbance);
            world.queue(Time::START + *time, disturbance.rank(), event);
        }
        world
    }

    fn queue(&mut self, time: Time, rank: Rank, event: Event) {
        self.queued += 1;
        self.queue.insert((time, self.queued), (rank, event));
    }

    /// Queues an event of a connection from one rank to another, behind those before it.
    fn queue_on_connection(&mut self, from: Rank, to: Rank, event: Event) {
        let mut time = self.now + self.random.up_to(self.delay);
        let below = from.max(to);
        if let Some(until) = self.stalled.get(&below) {
            time = time.max(*until);
        }
        let last = self.last_arrival.entry((to, from)).or_default();
        time = time.max(*last + Duration::from_nanos(1));
        *last = time;
        self.queue(time, to, event);
    }

    /// Queues an event of a link from one rank to another, behind those before it.
    fn queue_on_link(&mut self, from: Rank, to: Rank, event: Event) {
        let time = self.now + self.random.up_to(self.delay);
        let last = self.last_message.entry((to, from)).or_default();
        let time = time.max(*last + Duration::from_nanos(1));
        *last = time;
        self.queue(time, to, event);
    }

    fn thread_goes_on(&mut self, rank: Rank) {
        let time = self.now + self.random.up_to(self.delay);
        self.queue(time, rank, Event::Thread);
    }

    /// Queues the next deadline of the state machine of a rank.
    fn queue_wake(&mut self, rank: Rank) {
        let simulated = &mut self.ranks[rank as usize];
        let Some(wake) = simulated.core.as_ref().and_then(|core| core.wake()) else { return };
        // The clock of the rank may be ahead of that of the world, or behind it.
        let left = wake.since(simulated.local(self.now)) + Duration::from_nanos(1);
        let time = self.now + left;
        if simulated.wake_queued.is_none_or(|queued| queued > time || queued <= self.now) {
            simulated.wake_queued = Some(time);
            self.queue(time, rank, Event::Wake);
        }
    }

    fn happen(&mut self, rank: Rank, event: Event) {
        let simulated = &mut self.ranks[rank as usize];
        match simulated.process {
            SimulatedProcess::Running => {}
            SimulatedProcess::Stopped if !matches!(event, Event::Resume | Event::Disturbed(_)) => {
                return simulated.held.push(event);
            }
            SimulatedProcess::Stopped => {}
            SimulatedProcess::Exited | SimulatedProcess::Killed => return,
        }
        match event {
            Event::Frame(from, bytes) => {
                if !simulated.connections.contains(&from) {
                    return;
                }
                let header = bytes
                    .first_chunk::<HEADER_BYTES>()
                    .and_then(|head| FrameHeader::decode(head, most_items(self.truth.nranks)));
                let frame =
                    header.and_then(|header| ControlFrame::decode(header, &bytes[HEADER_BYTES..]));
                let input = frame.map_or(ControlInput::Malformed(from), |frame| {
                    ControlInput::Frame(from, frame)
                });
                self.handle(rank, input);
            }
            Event::Closed(from) => {
                if simulated.connections.contains(&from) {
                    simulated.connections.retain(|other| *other != from);
                    self.handle(rank, ControlInput::Closed(from));
                }
            }
            Event::ProcessEnded(of) => self.handle(rank, ControlInput::ProcessEnded(of)),
            Event::Message(from, call, tag) => {
                simulated.arrived.insert((from, call), tag);
                self.thread_goes_on(rank);
            }
            Event::LinkLeft(of) => {
                simulated.left_links.push(of);
                self.thread_goes_on(rank);
            }
            Event::LinkDied(of) => {
                simulated.dead_links.push(Verdict::Dead { rank: of, seen_by: rank });
                self.thread_goes_on(rank);
            }
            Event::LinkAborted(reason) => {
                let until = self.now + VERDICT_TIME;
                simulated.link_abort.get_or_insert((reason, until));
                self.thread_goes_on(rank);
                self.queue(until, rank, Event::Thread);
            }
            Event::Thread => self.run_thread(rank),
            Event::Wake => {
                if simulated.wake_queued.is_some_and(|time| time <= self.now) {
                    simulated.wake_queued = None;
                }
                self.handle(rank, ControlInput::Tick);
            }
            Event::Disturbed(disturbance) => self.disturb(rank, disturbance),
            Event::Resume => {
                if simulated.process == SimulatedProcess::Stopped {
                    simulated.process = SimulatedProcess::Running;
                    let mut held = std::mem::take(&mut simulated.held);
                    // The thread of the user may go on before anything is read. Deadlines count
                    // only when all that has come was read.
                    let thread_is_first = self.random.one_in(2);
                    held.sort_by_key(|event| match event {
                        Event::Thread if thread_is_first => 0,
                        Event::Wake => 2,
                        _ => 1,
                    });
                    for event in held {
                        self.queue(self.now, rank, event);
                    }
                }
            }
        }
    }

    fn disturb(&mut self, rank: Rank, disturbance: Disturbance) {
        let now = self.now;
        let simulated = &mut self.ranks[rank as usize];
        match disturbance {
            Disturbance::Kill(_, child_lives) => {
                self.truth.killed(rank, simulated.has_left());
                self.end_process(rank, SimulatedProcess::Killed, child_lives);
            }
            Disturbance::Stop(_, time) => {
                if simulated.process == SimulatedProcess::Running {
                    simulated.process = SimulatedProcess::Stopped;
                    self.queue(now + time, rank, Event::Resume);
                }
            }
            Disturbance::JumpClock(_, milliseconds) => {
                simulated.clock_ahead += milliseconds * 1_000_000;
                self.queue_wake(rank);
            }
            Disturbance::Stall(_, time) => {
                self.stalled.insert(rank, now + time);
            }
            Disturbance::Break(_) => {
                if let Some(above) = parent(rank)
                    && simulated.connections.contains(&above)
                {
                    self.truth.broke(rank, above);
                    self.queue_on_connection(rank, above, Event::Closed(rank));
                    self.queue_on_connection(above, rank, Event::Closed(above));
                }
            }
            Disturbance::Lie(_) => self.lie(rank),
        }
    }

    /// Sends the neighbours of a rank frames that are well-formed and wrong.
    fn lie(&mut self, rank: Rank) {
        self.truth.lies = true;
        let mut frames = crate::frame::examples();
        let any = |random: &mut Random, most: u64| random.below(most) as u32;
        for _ in 0..1 + self.random.below(5) {
            let random = &mut self.random;
            let (token, from, to) = (any(random, 5), any(random, 9), any(random, 9));
            frames.push(ControlFrame::Question { token, from, to });
            let activity = Activity::default();
            frames.push(ControlFrame::Answer { token, from, to, activity });
            let point = HistoryPoint { sequence: random.below(20), hash: random.next() };
            frames.extend([ControlFrame::History(point), ControlFrame::Leave(point)]);
            frames.push(ControlFrame::Up { sequence: any(random, 3), items: vec![1; 9] });
            frames.push(ControlFrame::Down { sequence: any(random, 3), items: vec![] });
        }
        for neighbour in self.ranks[rank as usize].connections.clone() {
            for _ in 0..self.random.below(4) {
                let at = self.random.below(frames.len() as u64) as usize;
                let mut bytes = Vec::new();
                frames[at].encode(&mut bytes);
                self.queue_on_connection(rank, neighbour, Event::Frame(rank, bytes));
            }
        }
    }

    /// Ends a process. A child that it forked holds its connections for some time.
    fn end_process(&mut self, rank: Rank, how: SimulatedProcess, child_lives: Duration) {
        let simulated = &mut self.ranks[rank as usize];
        if !simulated.is_alive() {
            return;
        }
        simulated.process = how;
        let host = simulated.host;
        let connections = std::mem::take(&mut simulated.connections);
        let nranks = self.truth.nranks;
        for other in 0..nranks {
            if self.ranks[other as usize].host != host {
                let last = self.last_message.entry((other, rank)).or_default();
                *last = (*last).max(self.now + child_lives);
                self.queue_on_link(rank, other, Event::LinkDied(rank));
            }
        }
        let neighbours: Vec<Rank> =
            parent(rank).into_iter().chain(children(rank, nranks)).collect();
        // The ranks next to it on its host watch it too.
        let others = |step: Rank| (1..nranks).map(move |i| (rank + i * step) % nranks);
        let is_near = |other: &Rank| self.ranks[*other as usize].host == host;
        let mut near = [others(1).find(is_near), others(nranks - 1).find(is_near)];
        if near[0] == near[1] {
            near[1] = None;
        }
        for other in near.into_iter().flatten().filter(|other| !neighbours.contains(other)) {
            let time = self.now + self.random.up_to(self.delay);
            self.queue(time, other, Event::ProcessEnded(rank));
        }
        for neighbour in neighbours {
            if self.ranks[neighbour as usize].host == host {
                let time = self.now + self.random.up_to(self.delay);
                self.queue(time, neighbour, Event::ProcessEnded(rank));
            }
            if connections.contains(&neighbour) {
                let last = self.last_arrival.entry((neighbour, rank)).or_default();
                *last = (*last).max(self.now + child_lives);
                self.queue_on_connection(rank, neighbour, Event::Closed(rank));
            }
        }
    }

    /// Passes an input to the state machine of a rank, and does what it wants.
    pub(super) fn handle(&mut self, rank: Rank, input: ControlInput) {
        let Some(mut core) = self.ranks[rank as usize].core.take() else { return };
        let now = self.ranks[rank as usize].local(self.now);
        let before = core.verdict().cloned();
        core.handle(now, input, &SimulatedFacts { rank, ranks: &self.ranks });
        self.truth.check_first_verdict(rank, before.as_ref(), core.verdict());
        if before.is_none()
            && let Some(verdict) = core.verdict()
        {
            self.truth.check_verdict(rank, verdict, &self.ranks);
        }
        let mut outputs = Vec::new();
        while let Some(output) = core.poll_output() {
            outputs.push(output);
        }
        self.ranks[rank as usize].core = Some(core);
        self.truth.check_outputs(rank, &outputs);
        for output in outputs {
            self.carry_out(rank, output);
        }
        self.queue_wake(rank);
    }

    fn carry_out(&mut self, rank: Rank, output: ControlOutput) {
        let simulated = &mut self.ranks[rank as usize];
        match output {
            ControlOutput::Send(to, frame) => {
                if simulated.connections.contains(&to) {
                    let mut bytes = Vec::new();
                    frame.encode(&mut bytes);
                    self.queue_on_connection(rank, to, Event::Frame(rank, bytes));
                }
            }
            ControlOutput::Close(neighbour) => {
                if simulated.connections.contains(&neighbour) {
                    simulated.connections.retain(|other| *other != neighbour);
                    self.queue_on_connection(rank, neighbour, Event::Closed(rank));
                }
            }
            ControlOutput::Ended(verdict @ Verdict::Dead { .. }) => {
                simulated.dead_links.push(verdict);
                self.thread_goes_on(rank);
            }
            ControlOutput::Ended(verdict) => {
                self.abort_links(rank, &verdict);
                self.ranks[rank as usize].ended.get_or_insert(verdict);
                self.thread_goes_on(rank);
            }
            ControlOutput::Exchanged(result) => {
                simulated.exchanged = Some(result);
                self.thread_goes_on(rank);
            }
            ControlOutput::Report(report) => {
                simulated.reports += 1;
                self.truth.check_report(&report, &self.ranks);
            }
            ControlOutput::EndAllWaits(_) => {
                let verdict = simulated.core.as_ref().and_then(|core| core.verdict().cloned());
                if let Some(verdict) = verdict {
                    self.abort_links(rank, &verdict);
                    self.ranks[rank as usize].ended.get_or_insert(verdict);
                    self.thread_goes_on(rank);
                }
            }
            ControlOutput::Missing(..) | ControlOutput::CheckDevice => {}
            ControlOutput::Left => {
                for neighbour in std::mem::take(&mut simulated.connections) {
                    self.queue_on_connection(rank, neighbour, Event::Closed(rank));
                }
            }
        }
    }

    /// Ends the waits of the other ranks over the links.
    fn abort_links(&mut self, rank: Rank, verdict: &Verdict) {
        let reason = match verdict {
            Verdict::Dead { .. } | Verdict::Left { .. } => Some(verdict.clone()),
            Verdict::Aborted { by } if *by == rank => Some(verdict.clone()),
            _ => None,
        };
        for to in (0..self.truth.nranks).filter(|to| *to != rank) {
            self.queue_on_link(rank, to, Event::LinkAborted(reason.clone()));
        }
    }

    /// The thread of the user goes on until it waits.
    fn run_thread(&mut self, rank: Rank) {
        loop {
            let now = self.now;
            let simulated = &mut self.ranks[rank as usize];
            let (local, ended) = (simulated.local(now), simulated.failing(now));
            match &mut simulated.thread {
                SimulatedThread::Left => return,
                SimulatedThread::Computing(until) if *until > now => return,
                SimulatedThread::Computing(_) => simulated.thread = SimulatedThread::Ready,
                SimulatedThread::Ready => {
                    if simulated.process != SimulatedProcess::Running {
                        return;
                    }
                    let action = simulated.program.get(simulated.next_action).copied();
                    simulated.next_action += 1;
                    if !self.begin(rank, action) {
                        return;
                    }
                }
                SimulatedThread::InExchange => match simulated.exchanged.take() {
                    None => return,
                    Some(Ok(whole)) => {
                        self.truth.check_exchange(rank, simulated.exchanges, &whole);
                        simulated.exchanges += 1;
                        simulated.thread = SimulatedThread::Ready;
                    }
                    Some(Err(verdict)) => {
                        simulated.failure = Some(verdict);
                        simulated.thread = SimulatedThread::Ready;
                        simulated.next_action = usize::MAX - 1;
                    }
                },
                SimulatedThread::InCall { missing, wait, looked_again, mismatched } => {
                    let sequence = simulated.calls.sequence;
                    let tag = simulated.history;
                    let mut wrong = None;
                    missing.retain(|&from| match simulated.arrived.get(&(from, sequence)) {
                        Some(&theirs) if theirs == tag => false,
                        Some(_) => {
                            wrong = Some(from);
                            true
                        }
                        None => true,
                    });
                    if missing.is_empty() {
                        simulated.calls.in_call = false;
                        simulated.thread = SimulatedThread::Ready;
                        continue;
                    }
                    let peer = missing[0];
                    if let Some(from) = wrong
                        && !*mismatched
                    {
                        *mismatched = true;
                        let fallback = String::from("the tags differ");
                        self.handle(rank, ControlInput::FindMismatch { peer: from, fallback });
                        continue;
                    }
                    let dead =
                        |it: &&Verdict| matches!(it, Verdict::Dead { rank, .. } if *rank == peer);
                    let gone = if simulated.left_links.contains(&peer) {
                        Some(Verdict::Left { rank: peer })
                    } else {
                        simulated.dead_links.iter().find(dead).cloned()
                    };
                    if let Some(verdict) = ended.or(gone) {
                        // What came before the failure counts.
                        if !std::mem::replace(looked_again, true) {
                            self.queue(now + Duration::from_nanos(1), rank, Event::Thread);
                            return;
                        }
                        simulated.failure = Some(verdict.clone());
                        simulated.thread = SimulatedThread::Ready;
                        simulated.next_action = usize::MAX - 1;
                        // A rank that was only told that others failed makes no verdict of its own.
                        if !matches!(verdict, Verdict::Failed { rank: Rank::MAX, .. }) {
                            self.handle(rank, ControlInput::Decide(verdict.clone()));
                        }
                        if matches!(verdict, Verdict::Dead { .. }) {
                            self.abort_links(rank, &verdict);
                        }
                        continue;
                    }
                    *looked_again = false;
                    let wait = wait.get_or_insert_with(|| LongWait::begin(local, &self.timing));
                    match wait.step(local, &self.timing) {
                        WaitStep::TimedOut { waited } => {
                            let what = simulated.calls.last();
                            let verdict = Verdict::Timeout { rank, peer, what, waited };
                            self.handle(rank, ControlInput::Decide(verdict));
                        }
                        WaitStep::Sleep { limit, investigate } => {
                            let time = now + limit.max(Duration::from_millis(1));
                            self.queue(time, rank, Event::Thread);
                            if let Some(since) = investigate {
                                self.handle(rank, ControlInput::Investigate { peer, since });
                            }
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Begins an action; None is the end of the program. Returns whether the thread goes on at
    /// once.
    fn begin(&mut self, rank: Rank, action: Option<Action>) -> bool {
        let (now, nranks) = (self.now, self.truth.nranks);
        let simulated = &mut self.ranks[rank as usize];
        if let Some(verdict) = simulated.failing(now)
            && action.is_some()
        {
            simulated.failure.get_or_insert(verdict);
            simulated.next_action = usize::MAX - 1;
            return true;
        }
        match action {
            Some(Action::Compute(time)) => {
                simulated.thread = SimulatedThread::Computing(now + time);
                self.queue(now + time, rank, Event::Thread);
                false
            }
            Some(Action::Call(kind, count)) => {
                let (missing, receivers) = simulated.begin_call(kind, count);
                let (sequence, tag) = (simulated.calls.sequence, simulated.history);
                simulated.thread = SimulatedThread::InCall {
                    missing,
                    wait: None,
                    looked_again: false,
                    mismatched: false,
                };
                for to in receivers {
                    self.queue_on_link(rank, to, Event::Message(rank, sequence, tag));
                }
                true
            }
            Some(Action::Exchange) => {
                let bytes = Truth::exchange_bytes(rank, simulated.exchanges);
                let deadline = simulated.local(now) + EXCHANGE_TIMEOUT;
                simulated.thread = SimulatedThread::InExchange;
                simulated.exchanged = None;
                self.handle(rank, ControlInput::Exchange { bytes, deadline });
                true
            }
            Some(Action::Abort) => {
                self.truth.aborted.push(rank);
                let verdict = Verdict::Aborted { by: rank };
                self.abort_links(rank, &verdict);
                self.handle(rank, ControlInput::Decide(verdict));
                true
            }
            Some(Action::Exit) | None => {
                simulated.thread = SimulatedThread::Left;
                // A failure goes out before the farewell.
                self.handle(rank, ControlInput::Leave);
                for to in (0..nranks).filter(|to| *to != rank) {
                    self.queue_on_link(rank, to, Event::LinkLeft(rank));
                }
                if action.is_some() {
                    self.end_process(rank, SimulatedProcess::Exited, Duration::ZERO);
                }
                false
            }
        }
    }
}
