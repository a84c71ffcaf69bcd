//! Races: two lanes of a rank use the same memory, one of them writes, and nothing orders the two.
//!
//! Vector clocks, one component for each lane of each rank, carry the weakest order that every allowed execution
//! keeps: the order within lanes, `after`, and each message before the step that takes it. Credits and releases
//! order nothing here, since an engine may have more credits and may copy. Beyond that, a lent chunk is read
//! until its messages are released, and what is known to come later than the release is: the steps that took all the
//! messages; the steps that name the lending step in `after` (an engine that lends waits there); and all else that comes
//! later than those. A step of the lending lane itself waits for the release when it writes the chunk.
//! Each message is looked at as if it alone were lent and all others copied, which is the hardest mixture.

use super::counterexample::{Access, AccessKind, Violation};
use super::form::{Form, Resolved, lent};
use super::machine::{Firing, Numbering, written};
use super::memory::Memory;
use crate::schedule::{Chunk, Operand};

const NONE: u32 = u32::MAX;

/// A point in a lane: its number of firings up to and including the one meant.
#[derive(Clone, Copy)]
struct Moment {
    lane: u32,
    count: u32,
}

/// A read that a later write must not overtake. `loan` if it lasts beyond the step.
#[derive(Clone, Copy)]
struct Read {
    at: Moment,
    loan: Option<u32>,
}

/// The uses of a cell since it was written last.
#[derive(Clone, Default)]
struct Uses {
    write: Option<Moment>,
    reads: Vec<Read>,
}

/// The messages of one firing that may be memory of the sender.
struct Loan {
    /// How many are not taken yet.
    pending: u32,
    takers: Vec<Moment>,
    /// Firings that wait for the release of all of them.
    waiters: Vec<Moment>,
}

/// Watches one execution of a schedule for races.
pub(super) struct Hazards<'a> {
    form: &'a Form,
    memory: &'a Memory,
    numbering: &'a Numbering,
    /// Per lane, its clock: a row.
    clocks: Rows,
    cells: Vec<Uses>,
    loans: Vec<Loan>,
    /// By slot of the link: the sender's clock, and its loan.
    messages: Vec<(u32, u32)>,
    /// Per step and tile, for steps that some `after` names: clock and loan.
    done: Vec<(u32, u32)>,
    named: Vec<bool>,
}

impl<'a> Hazards<'a> {
    /// For the first call; None where no rank has two lanes: the only order is then the lane's own, and the lane itself
    /// waits for what it lent.
    pub(super) fn new(
        calls: &'a [Form],
        memory: &'a Memory,
        numbering: &'a Numbering,
    ) -> Option<Self> {
        let form = &calls[0];
        if (0..form.nranks).all(|rank| form.lanes_of(rank).len() < 2) {
            return None;
        }
        let mut named = vec![false; form.steps.len()];
        for lane in &form.lanes {
            for step in lane.first_step..lane.first_step + lane.steps {
                for after in &form.steps[step as usize].after {
                    let other = form.first_lane[lane.rank as usize] + after.lane;
                    named[(form.lanes[other as usize].first_step + after.step) as usize] = true;
                }
            }
        }
        Some(Self {
            form,
            memory,
            numbering,
            clocks: Rows::new(form.lanes.len()),
            cells: vec![Uses::default(); memory.cells],
            loans: Vec::new(),
            messages: vec![(NONE, NONE); numbering.total],
            done: vec![(NONE, NONE); form.steps.len() * form.tiles as usize],
            named,
        })
    }

    /// Takes note of a firing; the calls after the first have one lane a rank and nothing to race with.
    pub(super) fn fire(&mut self, firing: &Firing) -> Result<(), Violation> {
        let Firing { call: 0, lane, position, tile, .. } = *firing else { return Ok(()) };
        let form = self.form;
        let count = tile * form.lanes[lane as usize].steps + position + 1;
        let now = Moment { lane, count };
        self.clocks.set(lane, now);
        self.follow(firing, now);
        let loan = self.lend(firing);
        self.use_memory(firing, now, loan)?;
        self.publish(firing, loan);
        Ok(())
    }

    /// Joins the clocks of what the firing comes after.
    fn follow(&mut self, firing: &Firing, now: Moment) {
        let Firing { lane, step, tile, .. } = *firing;
        let form = self.form;
        let rank = form.lanes[lane as usize].rank;
        for after in &form.steps[step as usize].after {
            let other = form.first_lane[rank as usize] + after.lane;
            let named = form.lanes[other as usize].first_step + after.step;
            let (row, loan) = self.done[self.done_index(named, tile)];
            self.clocks.join(lane, row);
            if loan != NONE {
                self.loans[loan as usize].waiters.push(now);
            }
        }
        for input in form.operands(step as usize).0 {
            if let Resolved::Message { link, ordinal } = *input {
                let message = self.numbering.message(0, form, tile, link, ordinal);
                let (row, loan) = self.messages[self.numbering.slot(link, message)];
                self.clocks.join(lane, row);
                self.clocks.drop(row);
                if loan != NONE {
                    let loan = &mut self.loans[loan as usize];
                    loan.pending -= 1;
                    loan.takers.push(now);
                }
            }
        }
    }

    /// Opens a loan if the step's messages may be memory of a rank with several lanes.
    fn lend(&mut self, firing: &Firing) -> u32 {
        let form = self.form;
        let text = &form.steps[firing.step as usize];
        let rank = form.lanes[firing.lane as usize].rank;
        if form.lanes_of(rank).len() < 2 || lent(text).next().is_none() {
            return NONE;
        }
        let sent = text.outputs.iter().filter(|output| matches!(output, Operand::Peer { .. }));
        let pending = sent.count() as u32;
        self.loans.push(Loan { pending, takers: Vec::new(), waiters: Vec::new() });
        self.loans.len() as u32 - 1
    }

    fn use_memory(&mut self, firing: &Firing, now: Moment, loan: u32) -> Result<(), Violation> {
        let Firing { lane, step, tile, .. } = *firing;
        let form = self.form;
        let rank = form.lanes[lane as usize].rank;
        if form.lanes_of(rank).len() < 2 {
            return Ok(());
        }
        let cell = |chunk| self.memory.cell(0, form, rank, chunk, tile);
        let text = &form.steps[step as usize];
        for operand in &text.inputs {
            let Operand::Local(chunk) = *operand else { continue };
            let uses = &mut self.cells[cell(chunk)];
            if let Some(write) = uses.write.filter(|&write| !self.clocks.knows(lane, write)) {
                return Err(self.race(chunk, (write, AccessKind::Write), (now, AccessKind::Read)));
            }
            uses.reads.push(Read { at: now, loan: None });
        }
        for chunk in written(text) {
            let cell = cell(chunk);
            let uses = &self.cells[cell];
            if let Some(write) = uses.write.filter(|&write| !self.clocks.knows(lane, write)) {
                return Err(self.race(chunk, (write, AccessKind::Write), (now, AccessKind::Write)));
            }
            for read in &uses.reads {
                if !self.clocks.knows(lane, read.at) {
                    return Err(self.race(
                        chunk,
                        (read.at, AccessKind::Read),
                        (now, AccessKind::Write),
                    ));
                }
                if !self.is_returned(read, lane) {
                    return Err(self.race(
                        chunk,
                        (read.at, AccessKind::Lent),
                        (now, AccessKind::Write),
                    ));
                }
            }
            self.cells[cell].write = Some(now);
            self.cells[cell].reads.clear();
        }
        if loan != NONE {
            for chunk in lent(text) {
                self.cells[cell(chunk)].reads.push(Read { at: now, loan: Some(loan) });
            }
        }
        Ok(())
    }

    /// Whether a write by `lane` now is sure to come when the read's messages are released.
    fn is_returned(&self, read: &Read, lane: u32) -> bool {
        let Some(loan) = read.loan.filter(|_| read.at.lane != lane) else { return true };
        let Loan { pending, takers, waiters } = &self.loans[loan as usize];
        let known = |moment: &Moment| self.clocks.knows(lane, *moment);
        waiters.iter().any(known) || (*pending == 0 && takers.iter().all(known))
    }

    /// Leaves the clock with the messages and with those who come after the step.
    fn publish(&mut self, firing: &Firing, loan: u32) {
        let Firing { lane, step, tile, .. } = *firing;
        let form = self.form;
        let outputs = form.operands(step as usize).1;
        let sent =
            outputs.iter().filter(|output| matches!(output, Resolved::Message { .. })).count();
        let readers = sent as u32 + u32::from(self.named[step as usize]);
        if readers == 0 {
            return;
        }
        let row = self.clocks.copy(lane, readers);
        for output in outputs {
            if let Resolved::Message { link, ordinal } = *output {
                let message = self.numbering.message(0, form, tile, link, ordinal);
                self.messages[self.numbering.slot(link, message)] = (row, loan);
            }
        }
        if self.named[step as usize] {
            let index = self.done_index(step, tile);
            self.done[index] = (row, loan);
        }
    }

    fn done_index(&self, step: u32, tile: u32) -> usize {
        (step * self.form.tiles + tile) as usize
    }

    fn race(
        &self,
        chunk: Chunk,
        first: (Moment, AccessKind),
        second: (Moment, AccessKind),
    ) -> Violation {
        let access = |(Moment { lane, count }, kind)| {
            let steps = self.form.lanes[lane as usize].steps;
            let (tile, position) = ((count - 1) / steps, (count - 1) % steps);
            Box::new(Access { place: self.form.place(0, lane, position, tile), kind })
        };
        let rank = self.form.lanes[first.0.lane as usize].rank;
        Violation::Race { rank, chunk, first: access(first), second: access(second) }
    }
}

/// Clocks: the first rows are the lanes' own, the others copies, each for a number of readers.
struct Rows {
    width: usize,
    counts: Vec<u32>,
    readers: Vec<u32>,
    free: Vec<u32>,
}

impl Rows {
    fn new(lanes: usize) -> Self {
        let (counts, readers) = (vec![0; lanes * lanes], vec![0; lanes]);
        Self { width: lanes, counts, readers, free: Vec::new() }
    }

    fn set(&mut self, lane: u32, now: Moment) {
        self.counts[lane as usize * self.width + now.lane as usize] = now.count;
    }

    fn knows(&self, lane: u32, moment: Moment) -> bool {
        self.counts[lane as usize * self.width + moment.lane as usize] >= moment.count
    }

    fn join(&mut self, lane: u32, row: u32) {
        let (own, other) = (lane as usize * self.width, row as usize * self.width);
        // Copies lie behind the lanes' own rows.
        let (low, high) = self.counts.split_at_mut(other);
        for (own, other) in low[own..own + self.width].iter_mut().zip(&high[..self.width]) {
            *own = (*own).max(*other);
        }
    }

    fn copy(&mut self, lane: u32, readers: u32) -> u32 {
        let start = lane as usize * self.width;
        let from = start..start + self.width;
        match self.free.pop() {
            Some(row) => {
                self.counts.copy_within(from, row as usize * self.width);
                self.readers[row as usize] = readers;
                row
            }
            None => {
                self.counts.extend_from_within(from);
                self.readers.push(readers);
                self.readers.len() as u32 - 1
            }
        }
    }

    /// One reader of the copy less; the last gives it back.
    fn drop(&mut self, row: u32) {
        self.readers[row as usize] -= 1;
        if self.readers[row as usize] == 0 {
            self.free.push(row);
        }
    }
}
