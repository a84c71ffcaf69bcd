//! Races: two lanes of a rank use the same memory, one of them writes, and nothing orders the two.
//!
//! Vector clocks, one component for each lane, carry the weakest order that every allowed execution
//! keeps: the order within lanes, `after`, and each message before the step that takes it. Credits and releases
//! order nothing here, since an engine may have more credits and may copy. Beyond that, a lent chunk is read
//! until its messages are released, and what is known to come later than the release is: the steps that took all the
//! messages; the steps that name the lending step in `after` (an engine that lends waits there); and all else that comes
//! later than those. A step of the lending lane itself waits for the release when it writes the chunk.
//! Each message is looked at as if it alone were lent and all others copied, which is the hardest mixture.
//!
//! Only chunks that several lanes use and one of them writes can be raced for; the others are not looked at, and if there are
//! none, nothing is. Where there are, the order that the rank itself keeps (lanes and `after`, no messages) often shows
//! all: clocks of the rank's own lanes are enough then ([`Reach::Rank`]). That order is part of the whole one, so what it
//! orders is ordered. What it does not order is looked at again with clocks of all lanes ([`Reach::World`]), and what these do
//! not order is a race.

use super::clock::{Clocks, Moment, Stamp};
use super::counterexample::{AccessKind, ChunkAccess, Violation};
use super::form::{Decoded, Form};
use super::machine::{Firing, Numbering};
use super::memory::Memory;
use crate::schedule::Chunk;

const NONE: u32 = u32::MAX;

/// Whose lanes the clocks know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those of the rank; a race may turn out to be none.
    Rank,
    /// Those of all ranks.
    World,
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
    /// How many are not taken yet, as far as messages are followed.
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
    reach: Reach,
    clocks: Clocks,
    contested: Contested,
    /// By contested chunk and tile.
    uses: Vec<Uses>,
    loans: Vec<Loan>,
    /// By slot of the link: the sender's clock, and its loan.
    messages: Vec<(Stamp, u32)>,
    /// Per step and tile, for steps that some `after` names: clock and loan.
    done: Vec<(Stamp, u32)>,
    /// Per step, how many name it.
    namers: Vec<u32>,
}

impl<'a> Hazards<'a> {
    /// For the first call; None where nothing can be raced for: whatever is written is used by one lane, whose order is its own,
    /// and which waits itself for what it lent.
    pub(super) fn new(
        calls: &'a [Form],
        memory: &'a Memory,
        numbering: &'a Numbering,
        reach: Reach,
    ) -> Option<Self> {
        let form = &calls[0];
        let contested = Contested::new(form, memory);
        if contested.count == 0 {
            return None;
        }
        let mut namers = vec![0; form.steps()];
        for lane in &form.lanes {
            for step in lane.first_step..lane.first_step + lane.steps {
                for after in form.step(step).after {
                    let other = form.first_lane[lane.rank as usize] + after.lane;
                    namers[(form.lanes[other as usize].first_step + after.step) as usize] += 1;
                }
            }
        }
        let columns: Vec<u32> = match reach {
            Reach::Rank => form.lanes.iter().map(|lane| lane.index).collect(),
            Reach::World => (0..form.lanes.len() as u32).collect(),
        };
        let tiles = form.tiles as usize;
        Some(Self {
            form,
            memory,
            numbering,
            reach,
            clocks: Clocks::new(columns),
            uses: vec![Uses::default(); contested.count as usize * tiles],
            contested,
            loans: Vec::new(),
            messages: match reach {
                Reach::Rank => Vec::new(),
                Reach::World => vec![(Stamp::NONE, NONE); numbering.total],
            },
            done: vec![(Stamp::NONE, NONE); form.steps() * tiles],
            namers,
        })
    }

    /// Takes note of a firing; the calls after the first have one lane a rank and nothing to race with.
    pub(super) fn fire(&mut self, firing: &Firing) -> Result<(), Violation> {
        let Firing { call: 0, lane, step, position, tile } = *firing else { return Ok(()) };
        let form = self.form;
        let rank = form.lanes[lane as usize].rank;
        if self.reach == Reach::Rank && !self.contested.ranks[rank as usize] {
            return Ok(());
        }
        let count = tile * form.lanes[lane as usize].steps + position + 1;
        let now = Moment { lane, count };
        let text = form.step(step);
        self.clocks.set(now);
        self.follow(firing, text, now);
        let loan = self.lend(firing, text);
        self.use_memory(firing, text, now, loan)?;
        self.publish(firing, text, loan);
        Ok(())
    }

    /// Joins the clocks of what the firing comes after.
    fn follow(&mut self, firing: &Firing, text: Decoded<'_>, now: Moment) {
        let Firing { lane, tile, .. } = *firing;
        let form = self.form;
        let rank = form.lanes[lane as usize].rank;
        for after in text.after {
            let other = form.first_lane[rank as usize] + after.lane;
            let named = form.lanes[other as usize].first_step + after.step;
            let (stamp, loan) = self.done[self.done_index(named, tile)];
            self.clocks.join(lane, stamp);
            if loan != NONE {
                self.loans[loan as usize].waiters.push(now);
            }
        }
        if self.reach == Reach::Rank {
            return;
        }
        for (link, ordinal) in text.taken() {
            let message = self.numbering.message(0, form, tile, link, ordinal);
            let (stamp, loan) = self.messages[self.numbering.slot(link, message)];
            self.clocks.join(lane, stamp);
            if loan != NONE {
                let loan = &mut self.loans[loan as usize];
                loan.pending -= 1;
                loan.takers.push(now);
            }
        }
    }

    /// Opens a loan if the step's messages may be memory that is contested.
    fn lend(&mut self, firing: &Firing, text: Decoded<'_>) -> u32 {
        let mut lent = text.lent();
        if !lent.any(|chunk| self.contested.number(self.cell(firing, chunk)) != NONE) {
            return NONE;
        }
        let pending = text.sent().count() as u32;
        self.loans.push(Loan { pending, takers: Vec::new(), waiters: Vec::new() });
        self.loans.len() as u32 - 1
    }

    /// The cell of a chunk in the first tile, by which it is known whether it is contested.
    fn cell(&self, firing: &Firing, chunk: Chunk) -> usize {
        let rank = self.form.lanes[firing.lane as usize].rank;
        self.memory.cell(0, self.form, rank, chunk, 0)
    }

    /// Where the uses of a chunk are kept, if it is contested. Scratch is the same memory in every tile.
    fn place(&self, firing: &Firing, chunk: Chunk) -> Option<usize> {
        let number = self.contested.number(self.cell(firing, chunk));
        let tile = if matches!(chunk, Chunk::Scratch(_)) { 0 } else { firing.tile };
        (number != NONE).then(|| (number * self.form.tiles + tile) as usize)
    }

    fn use_memory(
        &mut self,
        firing: &Firing,
        text: Decoded<'_>,
        now: Moment,
        loan: u32,
    ) -> Result<(), Violation> {
        let lane = firing.lane;
        for chunk in text.read() {
            let Some(place) = self.place(firing, chunk) else { continue };
            let uses = &mut self.uses[place];
            if let Some(write) = uses.write.filter(|&write| !self.clocks.knows(lane, write)) {
                return Err(self.race(chunk, (write, AccessKind::Write), (now, AccessKind::Read)));
            }
            uses.reads.push(Read { at: now, loan: None });
        }
        for chunk in text.written() {
            let Some(place) = self.place(firing, chunk) else { continue };
            let uses = &self.uses[place];
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
            self.uses[place].write = Some(now);
            self.uses[place].reads.clear();
        }
        if loan != NONE {
            for chunk in text.lent() {
                if let Some(place) = self.place(firing, chunk) {
                    self.uses[place].reads.push(Read { at: now, loan: Some(loan) });
                }
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
    fn publish(&mut self, firing: &Firing, text: Decoded<'_>, loan: u32) {
        let Firing { lane, step, tile, .. } = *firing;
        let namers = self.namers[step as usize];
        let sent = match self.reach {
            Reach::Rank => 0,
            Reach::World => text.sent().count() as u32,
        };
        if namers + sent == 0 {
            return;
        }
        let stamp = self.clocks.publish(lane, namers + sent);
        if sent > 0 {
            for (link, ordinal) in text.sent() {
                let message = self.numbering.message(0, self.form, tile, link, ordinal);
                self.messages[self.numbering.slot(link, message)] = (stamp, loan);
            }
        }
        let index = self.done_index(step, tile);
        self.done[index] = (stamp, loan);
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
            Box::new(ChunkAccess { place: self.form.place(0, lane, position, tile), kind })
        };
        let rank = self.form.lanes[first.0.lane as usize].rank;
        Violation::Race { rank, chunk, first: access(first), second: access(second) }
    }
}

/// The chunks that several lanes use and at least one writes.
struct Contested {
    /// By cell of the first tile, [`NONE`] if it is not contested.
    numbers: Vec<u32>,
    count: u32,
    /// The ranks that have any.
    ranks: Vec<bool>,
}

impl Contested {
    fn new(form: &Form, memory: &Memory) -> Self {
        const SEVERAL: u32 = NONE - 1;
        // Per cell the lane that uses it, and whether one writes.
        let mut users = vec![(NONE, false); memory.cells];
        for (number, lane) in (0..).zip(&form.lanes) {
            if form.lanes_of(lane.rank).len() < 2 {
                continue;
            }
            let mut used = |chunk, writes| {
                let (user, written) = &mut users[memory.cell(0, form, lane.rank, chunk, 0)];
                *user = if *user == NONE || *user == number { number } else { SEVERAL };
                *written |= writes;
            };
            for step in (lane.first_step..lane.first_step + lane.steps).map(|at| form.step(at)) {
                step.read().for_each(|chunk| used(chunk, false));
                step.written().for_each(|chunk| used(chunk, true));
            }
        }
        let mut contested =
            Self { numbers: Vec::new(), count: 0, ranks: vec![false; form.nranks as usize] };
        contested.numbers = users
            .iter()
            .map(|user| {
                let number = if *user == (SEVERAL, true) { contested.count } else { NONE };
                contested.count += u32::from(number != NONE);
                number
            })
            .collect();
        for lane in &form.lanes {
            let steps = lane.first_step..lane.first_step + lane.steps;
            let uses_one = steps.map(|at| form.step(at)).any(|step| {
                let cell = |chunk| memory.cell(0, form, lane.rank, chunk, 0);
                step.read().chain(step.written()).any(|chunk| contested.number(cell(chunk)) != NONE)
            });
            contested.ranks[lane.rank as usize] |= uses_one;
        }
        contested
    }

    fn number(&self, cell: usize) -> u32 {
        self.numbers[cell]
    }
}
