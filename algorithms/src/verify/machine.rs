//! Executes schedules one firing at a time, in an order that the strictest constraints allow.
//!
//! The machine knows which step may fire, and nothing of what firing does: it counts messages and tells whoever
//! watches. A lane that is blocked is looked at again when what it waits for may have happened, so the work is
//! proportional to the number of firings.

use super::counterexample::{BlockedLane, MessageSemantics};
use super::form::{Decoded, Form, Lane, Link};
use super::memory::Memory;
use crate::types::Rank;

/// One execution of a step. `lane` and `step` count through the form of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Firing {
    pub(super) call: usize,
    pub(super) lane: u32,
    /// Position in its lane.
    pub(super) position: u32,
    pub(super) step: u32,
    pub(super) tile: u32,
}

/// Which message of a link, over all tiles and calls, and the slot that it takes there.
pub(super) struct Numbering {
    /// Per call and link: the first message.
    first: Vec<Vec<u32>>,
    /// Per link: the first slot, and how many.
    slots: Vec<(u32, u32)>,
    /// Slots altogether.
    pub(super) total: usize,
}

impl Numbering {
    pub(super) fn new(calls: &[Form], credit: u32) -> Self {
        let links = calls.iter().map(|form| form.links.len()).max().unwrap_or(0);
        let mut messages = vec![0; links];
        let mut first = Vec::with_capacity(calls.len());
        for form in calls {
            first.push(messages.clone());
            for (sum, link) in messages.iter_mut().zip(&form.links) {
                *sum += link.messages * form.tiles;
            }
        }
        let mut total = 0;
        let slots = messages
            .iter()
            .map(|&messages| {
                let slots = (total, messages.min(credit));
                total += slots.1;
                slots
            })
            .collect();
        Self { first, slots, total: total as usize }
    }

    /// The number, over all tiles and calls, of message `ordinal` in a tile of a call.
    pub(super) fn message(
        &self,
        call: usize,
        form: &Form,
        tile: u32,
        link: u32,
        ordinal: u32,
    ) -> u32 {
        let link = link as usize;
        self.first[call][link] + tile * form.links[link].messages + ordinal
    }

    /// The slot of that message. It is free again when the message is released.
    pub(super) fn slot(&self, link: u32, message: u32) -> usize {
        let (first, count) = self.slots[link as usize];
        (first + message % count) as usize
    }
}

/// Why an execution ended early.
pub(super) enum Halt<E> {
    /// Whoever watches objected.
    Objection(Firing, E),
    /// Nothing can fire; the cycle of waits.
    Deadlock(Vec<BlockedLane>),
}

/// What a step lacks.
#[derive(Clone, Copy, Default, PartialEq)]
enum Wait {
    /// Nothing: it may be tried.
    #[default]
    Nothing,
    /// A message on this link.
    Message(u32),
    /// A credit of this link.
    Credit(u32),
    /// That a message on this link, which may be memory of this rank, is released.
    Release(u32),
    /// That this lane of the rank comes past this position in the same tile.
    Step { lane: u32, position: u32 },
    /// That the former call is over on the rank.
    FormerCall,
}

/// A firing whose messages may be memory that its lane writes again.
struct Loan {
    /// The firing, as a number in its lane and call.
    count: u32,
    step: u32,
    tile: u32,
    /// Messages not released yet.
    pending: u32,
}

/// Where a lane is.
#[derive(Default)]
struct Progress {
    tile: u32,
    position: u32,
    wait: Wait,
    /// In the order of their firing; kept where the lane writes what it lends.
    loans: Vec<Loan>,
    rewrites: bool,
}

/// Counts of a link.
#[derive(Clone, Default)]
struct Traffic {
    sent: u32,
    taken: u32,
}

/// Of a slot: its message is a copy.
const COPY: u32 = u32::MAX;

pub(super) struct Machine<'a> {
    calls: &'a [Form],
    memory: &'a Memory,
    numbering: &'a Numbering,
    semantics: MessageSemantics,
    credit: u32,
    lanes: Vec<Vec<Progress>>,
    links: Vec<Traffic>,
    /// By slot the firing that lent its message memory, as a number in its lane, or [`COPY`].
    lenders: Vec<u32>,
    /// By call and rank: the lanes that are not through, and the messages that lend memory.
    open: Vec<Vec<u32>>,
    ready: Vec<(usize, u32)>,
    /// Per rank: lanes that wait for something on the rank itself, or for a release.
    waiting: Vec<Vec<(usize, u32)>>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        calls: &'a [Form],
        memory: &'a Memory,
        numbering: &'a Numbering,
        semantics: MessageSemantics,
        credit: u32,
    ) -> Self {
        let open = |form: &Form| {
            let has_steps = |lane: &u32| form.lanes[*lane as usize].steps > 0;
            let lanes = |rank| form.lanes_of(rank).filter(has_steps).count() as u32;
            (0..form.nranks).map(lanes).collect()
        };
        let mut machine = Self {
            calls,
            memory,
            numbering,
            semantics,
            credit,
            lanes: Vec::new(),
            links: vec![Traffic::default(); numbering.slots.len()],
            lenders: vec![COPY; numbering.total],
            open: calls.iter().map(open).collect(),
            ready: Vec::new(),
            waiting: vec![Vec::new(); calls[0].nranks as usize],
        };
        let mut mark = vec![u32::MAX; memory.cells];
        for (call, form) in calls.iter().enumerate() {
            let lane = |lane| {
                let rewrites = machine.rewrites(call, lane, &mut mark);
                Progress { rewrites, ..Progress::default() }
            };
            let lanes = (0..form.lanes.len() as u32).map(lane).collect();
            machine.lanes.push(lanes);
        }
        machine
    }

    /// Whether `lane` writes chunks that it also lends. `mark` holds no lane of this call's memory but earlier ones.
    fn rewrites(&self, call: usize, lane: u32, mark: &mut [u32]) -> bool {
        if self.semantics == MessageSemantics::Buffered {
            return false;
        }
        let form = &self.calls[call];
        let Lane { rank, first_step, steps, .. } = form.lanes[lane as usize];
        let cell = |chunk| self.memory.cell(call, form, rank, chunk, 0);
        let steps = || (first_step..first_step + steps).map(|step| form.step(step));
        for step in steps() {
            step.written().for_each(|chunk| mark[cell(chunk)] = lane);
        }
        steps().any(|step| step.lent().any(|chunk| mark[cell(chunk)] == lane))
    }

    /// Executes everything, telling `watch` of each firing; returns how many there were.
    pub(super) fn run<E>(
        mut self,
        mut watch: impl FnMut(Firing) -> Result<(), E>,
    ) -> Result<u64, Halt<E>> {
        let mut firings = 0;
        for call in (0..self.calls.len()).rev() {
            let lanes = (0..self.calls[call].lanes.len() as u32).rev();
            self.ready.extend(lanes.map(|lane| (call, lane)));
        }
        while let Some((call, lane)) = self.ready.pop() {
            while let Some(firing) = self.next(call, lane) {
                let wait = self.lacks(&firing);
                if wait == Wait::Nothing {
                    watch(firing).map_err(|error| Halt::Objection(firing, error))?;
                    self.fire(&firing);
                    firings += 1;
                    continue;
                }
                self.lanes[call][lane as usize].wait = wait;
                if !matches!(wait, Wait::Message(_) | Wait::Credit(_)) {
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
            Some((call, lane)) => Err(Halt::Deadlock(self.cycle(call, lane))),
            None => Ok(firings),
        }
    }

    fn lane(&self, call: usize, lane: u32) -> &'a Lane {
        &self.calls[call].lanes[lane as usize]
    }

    /// What a lane is to do next; None when it is through.
    fn next(&self, call: usize, lane: u32) -> Option<Firing> {
        let Lane { first_step, steps, .. } = *self.lane(call, lane);
        let Progress { tile, position, .. } = self.lanes[call][lane as usize];
        let through = steps == 0 || tile == self.calls[call].tiles;
        (!through).then_some(Firing { call, lane, position, step: first_step + position, tile })
    }

    /// The first thing that the step lacks.
    fn lacks(&self, firing: &Firing) -> Wait {
        let Firing { call, lane, step, tile, position } = *firing;
        let form = &self.calls[call];
        let rank = self.lane(call, lane).rank;
        if call > 0 && position == 0 && tile == 0 && self.open[call - 1][rank as usize] > 0 {
            return Wait::FormerCall;
        }
        let text = form.step(step);
        for after in text.after {
            let other = form.first_lane[rank as usize] + after.lane;
            let wait = self.done(call, other, after.step, tile);
            if wait != Wait::Nothing {
                return wait;
            }
        }
        for (link, _) in text.taken() {
            let traffic = &self.links[link as usize];
            if traffic.sent == traffic.taken {
                return Wait::Message(link);
            }
        }
        for (link, _) in text.sent() {
            let traffic = &self.links[link as usize];
            if traffic.sent - traffic.taken >= self.credit {
                return Wait::Credit(link);
            }
        }
        self.own_loan(call, lane, rank, tile, text)
    }

    /// What keeps a step that `after` names from being done.
    fn done(&self, call: usize, lane: u32, position: u32, tile: u32) -> Wait {
        let form = &self.calls[call];
        let progress = &self.lanes[call][lane as usize];
        if (progress.tile, progress.position) <= (tile, position) {
            return Wait::Step { lane, position };
        }
        let step = form.step(self.lane(call, lane).first_step + position);
        if self.semantics == MessageSemantics::Buffered || step.lent().next().is_none() {
            return Wait::Nothing;
        }
        self.unreleased(call, tile, step).map_or(Wait::Nothing, Wait::Release)
    }

    /// The link of a message of that firing that is not released.
    fn unreleased(&self, call: usize, tile: u32, step: Decoded<'_>) -> Option<u32> {
        step.sent().find_map(|(link, ordinal)| {
            let message = self.numbering.message(call, &self.calls[call], tile, link, ordinal);
            (self.links[link as usize].taken <= message).then_some(link)
        })
    }

    /// A message of the lane itself that may be memory which the step is to write.
    fn own_loan(&self, call: usize, lane: u32, rank: Rank, tile: u32, step: Decoded<'_>) -> Wait {
        let form = &self.calls[call];
        let cell = |chunk, tile| self.memory.cell(call, form, rank, chunk, tile);
        for loan in &self.lanes[call][lane as usize].loans {
            let lender = form.step(loan.step);
            for written in step.written().map(|chunk| cell(chunk, tile)) {
                if lender.lent().any(|chunk| cell(chunk, loan.tile) == written) {
                    let link = self.unreleased(call, loan.tile, lender);
                    return Wait::Release(link.expect("the loan is not returned"));
                }
            }
        }
        Wait::Nothing
    }

    fn fire(&mut self, firing: &Firing) {
        let Firing { call, lane, step, tile, position } = *firing;
        let form = &self.calls[call];
        let Lane { rank, steps, .. } = *self.lane(call, lane);
        let text = form.step(step);
        for (link, _) in text.taken() {
            self.release(call, link);
        }
        let count = tile * steps + position;
        let lends = self.semantics == MessageSemantics::Rendezvous && text.lent().next().is_some();
        let mut pending = 0;
        for (link, _) in text.sent() {
            let message = self.links[link as usize].sent;
            self.links[link as usize].sent += 1;
            self.lenders[self.numbering.slot(link, message)] = if lends { count } else { COPY };
            pending += 1;
            let drainer = form.links[link as usize].drainer;
            if self.lanes[call][drainer as usize].wait == Wait::Message(link) {
                self.wake(call, drainer);
            }
        }
        if lends {
            self.open[call][rank as usize] += pending;
            let progress = &mut self.lanes[call][lane as usize];
            if progress.rewrites {
                progress.loans.push(Loan { count, step, tile, pending });
            }
        }
        let progress = &mut self.lanes[call][lane as usize];
        progress.position += 1;
        if progress.position == steps {
            (progress.position, progress.tile) = (0, tile + 1);
            if progress.tile == form.tiles {
                self.open[call][rank as usize] -= 1;
            }
        }
        self.wake_rank(rank, Wait::Step { lane, position });
    }

    /// Gives the oldest message of `link` back to its sender.
    fn release(&mut self, call: usize, link: u32) {
        let end = &self.calls[call].links[link as usize];
        let message = self.links[link as usize].taken;
        self.links[link as usize].taken += 1;
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
        self.wake_rank(end.source, Wait::Release(link));
        for (call, form) in self.calls.iter().enumerate().skip(call) {
            if let Some(end) = form.links.get(link as usize).filter(|end| end.messages > 0)
                && self.lanes[call][end.feeder as usize].wait == Wait::Credit(link)
            {
                self.wake(call, end.feeder);
            }
        }
    }

    fn wake(&mut self, call: usize, lane: u32) {
        self.lanes[call][lane as usize].wait = Wait::Nothing;
        self.ready.push((call, lane));
    }

    /// Wakes the lanes of `rank` that waited for what has happened, or for the end of a call that is over now.
    fn wake_rank(&mut self, rank: Rank, happened: Wait) {
        let mut at = 0;
        while let Some(&(call, lane)) = self.waiting[rank as usize].get(at) {
            let wait = self.lanes[call][lane as usize].wait;
            let over = wait == Wait::FormerCall && self.open[call - 1][rank as usize] == 0;
            if wait == happened || over {
                self.waiting[rank as usize].swap_remove(at);
                self.wake(call, lane);
            } else {
                at += 1;
            }
        }
    }

    /// The cycle of waits that the blocked lane leads to.
    fn cycle(&self, mut call: usize, mut lane: u32) -> Vec<BlockedLane> {
        let mut path: Vec<((usize, u32), BlockedLane)> = Vec::new();
        while let Some(firing) = self.next(call, lane) {
            if let Some(start) = path.iter().position(|(at, _)| *at == (call, lane)) {
                path.drain(..start);
                break;
            }
            let wait = self.lacks(&firing);
            if wait == Wait::Nothing {
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

    /// The wait of a lane of `rank` in words, and the lane that could end it.
    fn explain(&self, call: usize, rank: Rank, wait: Wait) -> (String, (usize, u32)) {
        let end = |link: u32| &self.calls[call].links[link as usize];
        match wait {
            Wait::Nothing => unreachable!("a lane that lacks nothing has fired"),
            Wait::Message(link) => {
                let end = end(link);
                let reason = format!("a message of rank {} on channel {}", end.source, end.channel);
                (reason, (call, end.feeder))
            }
            Wait::Credit(link) => {
                let end = end(link);
                let reason = format!(
                    "a credit to send to rank {} on channel {}",
                    end.destination, end.channel
                );
                (reason, self.drainer(link))
            }
            Wait::Release(link) => {
                let end = end(link);
                let reason = format!(
                    "rank {} to release its memory, lent to a message on channel {}",
                    end.destination, end.channel
                );
                (reason, self.drainer(link))
            }
            Wait::Step { lane, .. } => {
                (format!("lane {} of the rank itself", self.lane(call, lane).index), (call, lane))
            }
            Wait::FormerCall => {
                let former = call - 1;
                let reason = "the end of the call before it on the rank itself".to_owned();
                let mut lanes = self.calls[former].lanes_of(rank);
                match lanes.find(|&lane| self.next(former, lane).is_some()) {
                    Some(lane) => (reason, (former, lane)),
                    None => (reason, self.borrower(former, rank)),
                }
            }
        }
    }

    /// A lane that has to take a message which lends memory of `rank`, all whose lanes are through.
    fn borrower(&self, call: usize, rank: Rank) -> (usize, u32) {
        let links = self.calls[call].links.iter().zip(&self.links);
        let waits =
            |(end, traffic): &(&Link, &Traffic)| end.source == rank && traffic.sent > traffic.taken;
        let (end, _) = links.into_iter().find(waits).expect("a message is under way");
        (call, end.drainer)
    }

    /// Who takes the next message of `link`, in whichever call that is.
    fn drainer(&self, link: u32) -> (usize, u32) {
        let taken = self.links[link as usize].taken;
        let call = (0..self.calls.len())
            .rev()
            .find(|&call| self.numbering.first[call][link as usize] <= taken)
            .unwrap_or(0);
        (call, self.calls[call].links[link as usize].drainer)
    }
}
