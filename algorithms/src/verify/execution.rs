//! Executes calls one firing at a time, in an order that the strictest constraints allow.
//!
//! The execution decides which step may fire and knows nothing of what firing does: it counts
//! messages and reports every firing to a callback. A blocked lane is looked at again only when
//! what it waits for may have happened, so the work is proportional to the number of firings.

use super::call::ExecutedCall;
use super::counterexample::{BlockedLane, MessageSemantics};
use super::memory::CellLayout;
use super::numbering::MessageNumbering;
use crate::flat::{FlatLane, FlatLink, StepView};
use crate::types::Rank;

/// One execution of a step for one tile. `lane` and `step` are numbers of the call's flat form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Firing {
    pub(super) call: usize,
    pub(super) lane: u32,
    /// The index of the step in its lane.
    pub(super) position: u32,
    pub(super) step: u32,
    pub(super) tile: u32,
}

/// Why an execution ended early.
pub(super) enum ExecutionHalt<E> {
    /// The callback returned an error at this firing.
    Rejected(Firing, E),
    /// No lane can fire; the cycle of waits.
    Deadlock(Vec<BlockedLane>),
}

/// What the next step of a lane waits for.
#[derive(Clone, Copy, Default, PartialEq)]
enum LaneWait {
    /// Nothing: the step may be tried.
    #[default]
    Nothing,
    /// A message on this link.
    Message(u32),
    /// A credit of this link.
    Credit(u32),
    /// The release of a message on this link that may be memory of the lane's rank.
    Release(u32),
    /// Another lane of the rank that has not passed this position in the same tile.
    Step { lane: u32, position: u32 },
    /// The end of the former call on the rank.
    FormerCall,
}

/// A firing whose messages may be memory that its lane writes again.
struct OwnLoan {
    /// The number of the firing in its lane and call.
    count: u32,
    step: u32,
    tile: u32,
    /// Messages that are not released yet.
    pending: u32,
}

/// How far a lane has come.
#[derive(Default)]
struct LaneProgress {
    tile: u32,
    position: u32,
    wait: LaneWait,
    /// In the order of their firing; empty unless the lane writes memory that it lends.
    loans: Vec<OwnLoan>,
    rewrites: bool,
}

/// How many messages of a link were sent and received so far, over all tiles and calls.
#[derive(Clone, Default)]
struct LinkTraffic {
    sent: u32,
    received: u32,
}

/// The lender of a slot whose message is a copy.
const COPY: u32 = u32::MAX;

/// An execution of all calls under one message semantics and number of credits.
pub(super) struct Execution<'a> {
    calls: &'a [ExecutedCall],
    layout: &'a CellLayout,
    numbering: &'a MessageNumbering,
    semantics: MessageSemantics,
    credit: u32,
    /// By call and lane.
    lanes: Vec<Vec<LaneProgress>>,
    links: Vec<LinkTraffic>,
    /// By slot the number, in its lane, of the firing that lent memory to the message, or [`COPY`].
    lenders: Vec<u32>,
    /// By call and rank the number of lanes that are not finished and of messages that lend memory.
    open: Vec<Vec<u32>>,
    ready: Vec<(usize, u32)>,
    /// By rank the lanes that wait for an event on the rank itself, or for a release.
    waiting: Vec<Vec<(usize, u32)>>,
}

impl<'a> Execution<'a> {
    pub(super) fn new(
        calls: &'a [ExecutedCall],
        layout: &'a CellLayout,
        numbering: &'a MessageNumbering,
        semantics: MessageSemantics,
        credit: u32,
    ) -> Self {
        let open = |executed: &ExecutedCall| {
            let has_steps = |lane: &u32| executed.flat.lanes[*lane as usize].steps > 0;
            let lanes = |rank| executed.flat.lanes_of(rank).filter(has_steps).count() as u32;
            (0..executed.flat.nranks).map(lanes).collect()
        };
        let mut execution = Self {
            calls,
            layout,
            numbering,
            semantics,
            credit,
            lanes: Vec::new(),
            links: vec![LinkTraffic::default(); numbering.slots.len()],
            lenders: vec![COPY; numbering.total],
            open: calls.iter().map(open).collect(),
            ready: Vec::new(),
            waiting: vec![Vec::new(); calls[0].flat.nranks as usize],
        };
        let mut mark = vec![u32::MAX; layout.cells];
        for (call, executed) in calls.iter().enumerate() {
            let lane = |lane| {
                let rewrites = execution.rewrites(call, lane, &mut mark);
                LaneProgress { rewrites, ..LaneProgress::default() }
            };
            let lanes = (0..executed.flat.lanes.len() as u32).map(lane).collect();
            execution.lanes.push(lanes);
        }
        execution
    }

    /// Whether `lane` writes chunks that it also lends. Of this call's cells, `mark` holds only
    /// numbers of earlier lanes.
    fn rewrites(&self, call: usize, lane: u32, mark: &mut [u32]) -> bool {
        if self.semantics == MessageSemantics::Buffered {
            return false;
        }
        let executed = &self.calls[call];
        let rank = executed.flat.lanes[lane as usize].rank;
        let cell = |chunk| self.layout.cell(call, executed, rank, chunk, 0);
        let steps = || executed.flat.steps_of(lane).map(|step| executed.flat.step(step));
        for step in steps() {
            step.written().for_each(|chunk| mark[cell(chunk)] = lane);
        }
        steps().any(|step| step.lent().any(|chunk| mark[cell(chunk)] == lane))
    }

    /// Executes all calls and calls `observe` before each firing; returns the number of firings.
    pub(super) fn run<E>(
        mut self,
        mut observe: impl FnMut(Firing) -> Result<(), E>,
    ) -> Result<u64, ExecutionHalt<E>> {
        let mut firings = 0;
        for call in (0..self.calls.len()).rev() {
            let lanes = (0..self.calls[call].flat.lanes.len() as u32).rev();
            self.ready.extend(lanes.map(|lane| (call, lane)));
        }
        while let Some((call, lane)) = self.ready.pop() {
            while let Some(firing) = self.next(call, lane) {
                let wait = self.wait_of(&firing);
                if wait == LaneWait::Nothing {
                    observe(firing).map_err(|error| ExecutionHalt::Rejected(firing, error))?;
                    self.fire(&firing);
                    firings += 1;
                    continue;
                }
                self.lanes[call][lane as usize].wait = wait;
                if !matches!(wait, LaneWait::Message(_) | LaneWait::Credit(_)) {
                    let rank = self.lane(call, lane).rank;
                    self.waiting[rank as usize].push((call, lane));
                }
                break;
            }
        }
        let stuck = |call: usize| {
            (0..self.lanes[call].len() as u32).find(|&lane| self.next(call, lane).is_some())
        };
        match (0..self.calls.len()).find_map(|call| Some((call, stuck(call)?))) {
            Some((call, lane)) => Err(ExecutionHalt::Deadlock(self.cycle(call, lane))),
            None => Ok(firings),
        }
    }

    fn lane(&self, call: usize, lane: u32) -> &'a FlatLane {
        &self.calls[call].flat.lanes[lane as usize]
    }

    /// The next firing of a lane; None when the lane is finished.
    fn next(&self, call: usize, lane: u32) -> Option<Firing> {
        let FlatLane { first_step, steps, .. } = *self.lane(call, lane);
        let LaneProgress { tile, position, .. } = self.lanes[call][lane as usize];
        let finished = steps == 0 || tile == self.calls[call].tiles;
        (!finished).then_some(Firing { call, lane, position, step: first_step + position, tile })
    }

    /// The first thing that a firing has to wait for.
    fn wait_of(&self, firing: &Firing) -> LaneWait {
        let Firing { call, lane, step, tile, position } = *firing;
        let executed = &self.calls[call];
        let rank = self.lane(call, lane).rank;
        if call > 0 && position == 0 && tile == 0 && self.open[call - 1][rank as usize] > 0 {
            return LaneWait::FormerCall;
        }
        let view = executed.flat.step(step);
        for after in view.after {
            let position = after.step - executed.flat.lanes[after.lane as usize].first_step;
            let wait = self.until_done(call, after.lane, position, tile);
            if wait != LaneWait::Nothing {
                return wait;
            }
        }
        for (link, _) in view.received() {
            let traffic = &self.links[link as usize];
            if traffic.sent == traffic.received {
                return LaneWait::Message(link);
            }
        }
        for (link, _) in view.sent() {
            let traffic = &self.links[link as usize];
            if traffic.sent - traffic.received >= self.credit {
                return LaneWait::Credit(link);
            }
        }
        self.own_loan(call, lane, rank, tile, view)
    }

    /// What a step that `after` names has to wait for until it is done.
    fn until_done(&self, call: usize, lane: u32, position: u32, tile: u32) -> LaneWait {
        let executed = &self.calls[call];
        let progress = &self.lanes[call][lane as usize];
        if (progress.tile, progress.position) <= (tile, position) {
            return LaneWait::Step { lane, position };
        }
        let step = executed.flat.step(self.lane(call, lane).first_step + position);
        if self.semantics == MessageSemantics::Buffered || step.lent().next().is_none() {
            return LaneWait::Nothing;
        }
        self.unreleased(call, tile, step).map_or(LaneWait::Nothing, LaneWait::Release)
    }

    /// The link of a message of this firing that is not released, if there is one.
    fn unreleased(&self, call: usize, tile: u32, step: StepView<'_>) -> Option<u32> {
        step.sent().find_map(|(link, ordinal)| {
            let message = self.numbering.message(call, &self.calls[call], tile, link, ordinal);
            (self.links[link as usize].received <= message).then_some(link)
        })
    }

    /// The release that a step has to wait for because it writes memory that its own lane lent.
    fn own_loan(
        &self,
        call: usize,
        lane: u32,
        rank: Rank,
        tile: u32,
        step: StepView<'_>,
    ) -> LaneWait {
        let executed = &self.calls[call];
        let cell = |chunk, tile| self.layout.cell(call, executed, rank, chunk, tile);
        for loan in &self.lanes[call][lane as usize].loans {
            let lender = executed.flat.step(loan.step);
            for written in step.written().map(|chunk| cell(chunk, tile)) {
                if lender.lent().any(|chunk| cell(chunk, loan.tile) == written) {
                    let link = self.unreleased(call, loan.tile, lender);
                    return LaneWait::Release(link.expect("a loan ends with its last release"));
                }
            }
        }
        LaneWait::Nothing
    }

    fn fire(&mut self, firing: &Firing) {
        let Firing { call, lane, step, tile, position } = *firing;
        let executed = &self.calls[call];
        let FlatLane { rank, steps, .. } = *self.lane(call, lane);
        let view = executed.flat.step(step);
        for (link, _) in view.received() {
            self.release(call, link);
        }
        let count = tile * steps + position;
        let lends = self.semantics == MessageSemantics::Rendezvous && view.lent().next().is_some();
        let mut pending = 0;
        for (link, _) in view.sent() {
            let message = self.links[link as usize].sent;
            self.links[link as usize].sent += 1;
            self.lenders[self.numbering.slot(link, message)] = if lends { count } else { COPY };
            pending += 1;
            let drainer = executed.flat.links[link as usize].drainer;
            if self.lanes[call][drainer as usize].wait == LaneWait::Message(link) {
                self.wake(call, drainer);
            }
        }
        if lends {
            self.open[call][rank as usize] += pending;
            let progress = &mut self.lanes[call][lane as usize];
            if progress.rewrites {
                progress.loans.push(OwnLoan { count, step, tile, pending });
            }
        }
        let progress = &mut self.lanes[call][lane as usize];
        progress.position += 1;
        if progress.position == steps {
            (progress.position, progress.tile) = (0, tile + 1);
            if progress.tile == executed.tiles {
                self.open[call][rank as usize] -= 1;
            }
        }
        self.wake_rank(rank, LaneWait::Step { lane, position });
    }

    /// Releases the oldest message of `link`, which gives its credit back to the sender.
    fn release(&mut self, call: usize, link: u32) {
        let end = &self.calls[call].flat.links[link as usize];
        let message = self.links[link as usize].received;
        self.links[link as usize].received += 1;
        let lender = self.lenders[self.numbering.slot(link, message)];
        if lender != COPY {
            self.open[call][end.source as usize] -= 1;
            let loans = &mut self.lanes[call][end.feeder as usize].loans;
            if let Ok(at) = loans.binary_search_by_key(&lender, |loan| loan.count) {
                loans[at].pending -= 1;
                if loans[at].pending == 0 {
                    loans.remove(at);
                }
            }
        }
        self.wake_rank(end.source, LaneWait::Release(link));
        for (call, executed) in self.calls.iter().enumerate().skip(call) {
            if let Some(end) = executed.flat.links.get(link as usize).filter(|end| end.sent > 0)
                && self.lanes[call][end.feeder as usize].wait == LaneWait::Credit(link)
            {
                self.wake(call, end.feeder);
            }
        }
    }

    fn wake(&mut self, call: usize, lane: u32) {
        self.lanes[call][lane as usize].wait = LaneWait::Nothing;
        self.ready.push((call, lane));
    }

    /// Wakes the lanes of `rank` that waited for the event `happened`, or for the end of a call
    /// that is over now.
    fn wake_rank(&mut self, rank: Rank, happened: LaneWait) {
        let mut at = 0;
        while let Some(&(call, lane)) = self.waiting[rank as usize].get(at) {
            let wait = self.lanes[call][lane as usize].wait;
            let is_over = wait == LaneWait::FormerCall && self.open[call - 1][rank as usize] == 0;
            if wait == happened || is_over {
                self.waiting[rank as usize].swap_remove(at);
                self.wake(call, lane);
            } else {
                at += 1;
            }
        }
    }

    /// The cycle of waits that is reached from a blocked lane.
    fn cycle(&self, mut call: usize, mut lane: u32) -> Vec<BlockedLane> {
        let mut path: Vec<((usize, u32), BlockedLane)> = Vec::new();
        while let Some(firing) = self.next(call, lane) {
            if let Some(start) = path.iter().position(|(at, _)| *at == (call, lane)) {
                path.drain(..start);
                break;
            }
            let wait = self.wait_of(&firing);
            if wait == LaneWait::Nothing {
                break;
            }
            let rank = self.lane(call, lane).rank;
            let (reason, next) = self.explain(call, rank, wait);
            let place = self.calls[call].place(call, lane, firing.position, firing.tile);
            path.push(((call, lane), BlockedLane { place, reason }));
            (call, lane) = next;
        }
        path.into_iter().map(|(_, blocked)| blocked).collect()
    }

    /// Describes what a lane of `rank` waits for, and names the lane that could end the wait.
    fn explain(&self, call: usize, rank: Rank, wait: LaneWait) -> (String, (usize, u32)) {
        let end = |link: u32| &self.calls[call].flat.links[link as usize];
        match wait {
            LaneWait::Nothing => unreachable!("a lane that waits for nothing has fired"),
            LaneWait::Message(link) => {
                let end = end(link);
                let reason = format!("a message of rank {} on channel {}", end.source, end.channel);
                (reason, (call, end.feeder))
            }
            LaneWait::Credit(link) => {
                let end = end(link);
                let reason = format!(
                    "a credit to send to rank {} on channel {}",
                    end.destination, end.channel
                );
                (reason, self.drainer(link))
            }
            LaneWait::Release(link) => {
                let end = end(link);
                let reason = format!(
                    "rank {} to release its layout, lent to a message on channel {}",
                    end.destination, end.channel
                );
                (reason, self.drainer(link))
            }
            LaneWait::Step { lane, .. } => {
                (format!("lane {} of the rank itself", self.lane(call, lane).index), (call, lane))
            }
            LaneWait::FormerCall => {
                let former = call - 1;
                let reason = "the end of the call before it on the rank itself".to_owned();
                let mut lanes = self.calls[former].flat.lanes_of(rank);
                match lanes.find(|&lane| self.next(former, lane).is_some()) {
                    Some(lane) => (reason, (former, lane)),
                    None => (reason, self.borrower(former, rank)),
                }
            }
        }
    }

    /// A lane that has yet to receive a message which is memory of `rank`, whose own lanes are all
    /// finished.
    fn borrower(&self, call: usize, rank: Rank) -> (usize, u32) {
        let links = self.calls[call].flat.links.iter().zip(&self.links);
        let waits = |(end, traffic): &(&FlatLink, &LinkTraffic)| {
            end.source == rank && traffic.sent > traffic.received
        };
        let (end, _) = links
            .into_iter()
            .find(waits)
            .expect("the call is open because a message is not received");
        (call, end.drainer)
    }

    /// The call and lane that receive the next message of `link`.
    fn drainer(&self, link: u32) -> (usize, u32) {
        let received = self.links[link as usize].received;
        let call = (0..self.calls.len())
            .rev()
            .find(|&call| self.numbering.first[call][link as usize] <= received)
            .unwrap_or(0);
        (call, self.calls[call].flat.links[link as usize].drainer)
    }
}
