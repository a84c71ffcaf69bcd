//! Executes schedules one firing at a time, in an order that the strictest constraints allow.
//!
//! The machine knows which step may fire, and nothing of what firing does: it counts messages and tells whoever
//! watches. A lane that is blocked is looked at again when what it waits for may have happened, so the work is
//! proportional to the number of firings.

use super::counterexample::{Blocked, Semantics};
use super::form::{Form, Lane, Resolved, lent};
use super::memory::Memory;
use crate::schedule::{Chunk, Operand, Step};
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
    Deadlock(Vec<Blocked>),
}

/// What a step lacks.
enum Wait {
    /// A message on this link.
    Message(u32),
    /// A credit of this link.
    Credit(u32),
    /// That a message on this link, which may be memory of this rank, is released.
    Release(u32),
    /// That this lane of the rank, in this call, comes past a step, or is through.
    Lane(usize, u32),
}

/// A chunk that a message in flight may be.
struct Loan {
    cell: usize,
    link: u32,
    message: u32,
}

/// Where a lane is.
#[derive(Default)]
struct Progress {
    tile: u32,
    position: u32,
    queued: bool,
    loans: Vec<Loan>,
}

/// Counts of a link.
#[derive(Clone, Default)]
struct Traffic {
    sent: u32,
    taken: u32,
}

pub(super) struct Machine<'a> {
    calls: &'a [Form],
    memory: &'a Memory,
    numbering: &'a Numbering,
    semantics: Semantics,
    credit: u32,
    lanes: Vec<Vec<Progress>>,
    links: Vec<Traffic>,
    ready: Vec<(usize, u32)>,
    /// Per rank: lanes that wait for something on the rank itself.
    waiting: Vec<Vec<(usize, u32)>>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        calls: &'a [Form],
        memory: &'a Memory,
        numbering: &'a Numbering,
        semantics: Semantics,
        credit: u32,
    ) -> Self {
        let lanes = |form: &Form| form.lanes.iter().map(|_| Progress::default()).collect();
        Self {
            calls,
            memory,
            numbering,
            semantics,
            credit,
            lanes: calls.iter().map(lanes).collect(),
            links: vec![Traffic::default(); numbering.slots.len()],
            ready: Vec::new(),
            waiting: vec![Vec::new(); calls[0].nranks as usize],
        }
    }

    /// Executes everything, telling `watch` of each firing; returns how many there were.
    pub(super) fn run<E>(
        mut self,
        mut watch: impl FnMut(Firing) -> Result<(), E>,
    ) -> Result<u64, Halt<E>> {
        let mut firings = 0;
        for call in (0..self.calls.len()).rev() {
            for lane in (0..self.calls[call].lanes.len() as u32).rev() {
                self.wake(call, lane);
            }
        }
        while let Some((call, lane)) = self.ready.pop() {
            self.lanes[call][lane as usize].queued = false;
            while let Some(firing) = self.next(call, lane) {
                match self.lacks(&firing) {
                    None => {
                        watch(firing).map_err(|error| Halt::Objection(firing, error))?;
                        self.fire(&firing);
                        firings += 1;
                    }
                    Some(Wait::Release(_) | Wait::Lane(..)) => {
                        let rank = self.lane(call, lane).rank;
                        self.waiting[rank as usize].push((call, lane));
                        break;
                    }
                    Some(Wait::Message(_) | Wait::Credit(_)) => break,
                }
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

    fn wake(&mut self, call: usize, lane: u32) {
        let progress = &mut self.lanes[call][lane as usize];
        if !progress.queued {
            progress.queued = true;
            self.ready.push((call, lane));
        }
    }

    /// What a lane is to do next; None when it is through.
    fn next(&self, call: usize, lane: u32) -> Option<Firing> {
        let Lane { first_step, steps, .. } = *self.lane(call, lane);
        let Progress { tile, position, .. } = self.lanes[call][lane as usize];
        let through = steps == 0 || tile == self.calls[call].tiles;
        (!through).then_some(Firing { call, lane, position, step: first_step + position, tile })
    }

    /// The first thing that the step lacks; None if it can fire.
    fn lacks(&self, firing: &Firing) -> Option<Wait> {
        let Firing { call, lane, step, tile, .. } = *firing;
        let form = &self.calls[call];
        let rank = self.lane(call, lane).rank;
        if call > 0
            && firing.position == 0
            && tile == 0
            && let Some(wait) = self.former_call(call - 1, rank)
        {
            return Some(wait);
        }
        let text = &form.steps[step as usize];
        for after in &text.after {
            if let Some(wait) =
                self.done(call, form.first_lane[rank as usize] + after.lane, after.step, tile)
            {
                return Some(wait);
            }
        }
        let (inputs, outputs) = form.operands(step as usize);
        for input in inputs {
            if let Resolved::Message { link, .. } = *input {
                let traffic = &self.links[link as usize];
                if traffic.sent == traffic.taken {
                    return Some(Wait::Message(link));
                }
            }
        }
        for output in outputs {
            if let Resolved::Message { link, .. } = *output {
                let traffic = &self.links[link as usize];
                if traffic.sent - traffic.taken >= self.credit {
                    return Some(Wait::Credit(link));
                }
            }
        }
        self.own_loan(call, lane, rank, tile, text)
    }

    /// What keeps the former call from being over on `rank`.
    fn former_call(&self, call: usize, rank: Rank) -> Option<Wait> {
        let mut lanes = self.calls[call].lanes_of(rank);
        lanes.find_map(|lane| match self.lanes[call][lane as usize].loans.first() {
            Some(loan) => Some(Wait::Release(loan.link)),
            None => self.next(call, lane).map(|_| Wait::Lane(call, lane)),
        })
    }

    /// What keeps a step that `after` names from being done.
    fn done(&self, call: usize, lane: u32, position: u32, tile: u32) -> Option<Wait> {
        let form = &self.calls[call];
        let progress = &self.lanes[call][lane as usize];
        if (progress.tile, progress.position) <= (tile, position) {
            return Some(Wait::Lane(call, lane));
        }
        let step = (self.lane(call, lane).first_step + position) as usize;
        if self.semantics == Semantics::Buffered || lent(&form.steps[step]).next().is_none() {
            return None;
        }
        form.operands(step).1.iter().find_map(|output| match *output {
            Resolved::Message { link, ordinal } => {
                let message = self.numbering.message(call, form, tile, link, ordinal);
                (self.links[link as usize].taken <= message).then_some(Wait::Release(link))
            }
            Resolved::Local(_) => None,
        })
    }

    /// A message of the lane itself that may be memory which the step is to write.
    fn own_loan(&self, call: usize, lane: u32, rank: Rank, tile: u32, step: &Step) -> Option<Wait> {
        let loans = &self.lanes[call][lane as usize].loans;
        if loans.is_empty() {
            return None;
        }
        written(step).find_map(|chunk| {
            let cell = self.memory.cell(call, &self.calls[call], rank, chunk, tile);
            loans.iter().find(|loan| loan.cell == cell).map(|loan| Wait::Release(loan.link))
        })
    }

    fn fire(&mut self, firing: &Firing) {
        let Firing { call, lane, step, tile, .. } = *firing;
        let form = &self.calls[call];
        let rank = self.lane(call, lane).rank;
        let (inputs, outputs) = form.operands(step as usize);
        for input in inputs {
            if let Resolved::Message { link, .. } = *input {
                self.release(call, link);
            }
        }
        for output in outputs {
            if let Resolved::Message { link, .. } = *output {
                let message = self.links[link as usize].sent;
                self.links[link as usize].sent += 1;
                if self.semantics == Semantics::Rendezvous {
                    for chunk in lent(&form.steps[step as usize]) {
                        let cell = self.memory.cell(call, form, rank, chunk, tile);
                        self.lanes[call][lane as usize].loans.push(Loan { cell, link, message });
                    }
                }
                self.wake(call, form.links[link as usize].drainer);
            }
        }
        let progress = &mut self.lanes[call][lane as usize];
        progress.position += 1;
        if progress.position == self.calls[call].lanes[lane as usize].steps {
            (progress.position, progress.tile) = (0, progress.tile + 1);
        }
        self.wake_rank(rank);
    }

    /// Gives the oldest message of `link` back to its sender.
    fn release(&mut self, call: usize, link: u32) {
        let end = &self.calls[call].links[link as usize];
        let message = self.links[link as usize].taken;
        self.links[link as usize].taken += 1;
        let loans = &mut self.lanes[call][end.feeder as usize].loans;
        loans.retain(|loan| (loan.link, loan.message) != (link, message));
        self.wake_rank(end.source);
        for (call, form) in self.calls.iter().enumerate().skip(call) {
            if let Some(end) = form.links.get(link as usize).filter(|end| end.messages > 0) {
                self.wake(call, end.feeder);
            }
        }
    }

    fn wake_rank(&mut self, rank: Rank) {
        while let Some((call, lane)) = self.waiting[rank as usize].pop() {
            self.wake(call, lane);
        }
    }

    /// The cycle of waits that the blocked lane leads to.
    fn cycle(&self, mut call: usize, mut lane: u32) -> Vec<Blocked> {
        let mut path: Vec<((usize, u32), Blocked)> = Vec::new();
        while let Some(firing) = self.next(call, lane) {
            if let Some(start) = path.iter().position(|(at, _)| *at == (call, lane)) {
                path.drain(..start);
                break;
            }
            let Some(wait) = self.lacks(&firing) else { break };
            let (reason, next) = self.explain(call, &wait);
            let place = self.calls[call].place(call, lane, firing.position, firing.tile);
            path.push(((call, lane), Blocked { place, reason }));
            (call, lane) = next;
        }
        path.into_iter().map(|(_, blocked)| blocked).collect()
    }

    /// The wait in words, and the lane that could end it.
    fn explain(&self, call: usize, wait: &Wait) -> (String, (usize, u32)) {
        let end = |link: &u32| &self.calls[call].links[*link as usize];
        match wait {
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
                (reason, self.drainer(*link))
            }
            Wait::Release(link) => {
                let end = end(link);
                let reason = format!(
                    "rank {} to release its memory, lent to a message on channel {}",
                    end.destination, end.channel
                );
                (reason, self.drainer(*link))
            }
            Wait::Lane(call, lane) => (
                format!("lane {} of the rank itself", self.lane(*call, *lane).index),
                (*call, *lane),
            ),
        }
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

/// The chunks that a step writes.
pub(super) fn written(step: &Step) -> impl Iterator<Item = Chunk> + '_ {
    step.outputs.iter().filter_map(|operand| match operand {
        Operand::Local(chunk) => Some(*chunk),
        Operand::Peer { .. } => None,
    })
}
