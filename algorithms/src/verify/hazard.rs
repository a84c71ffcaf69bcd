//! Races: two lanes of a rank use the same layout, at least one of them writes it, and nothing
//! orders the two.
//!
//! Vector clocks with one component per lane carry the weakest order that every allowed execution
//! keeps: the order within lanes, `after`, and each message before the step that receives it.
//! Credits and releases order nothing here, since an engine may have more credits and may copy.
//!
//! A chunk that is lent is read until its messages are released. These are known to come after the
//! release: the steps that received all the messages; the steps that name the lending step in
//! `after`, where an engine that lends waits for the release; and all that comes after those. A
//! step of the lending lane itself waits for the release when it writes the chunk. Each message is
//! examined as if it alone were lent and all others copied, which is the mixture with the weakest
//! order.
//!
//! Only cells that several lanes use and one of them writes can be raced for. The others are not
//! examined, and if there are none, no clocks are kept. Where there are some, the order within the
//! rank (lanes and `after`, no messages) often shows that all is in order; clocks over the rank's
//! own lanes are enough for that ([`ClockScope::Rank`]). That order is part of the whole one, so
//! what it orders is ordered. If it leaves something unordered, the execution is repeated with
//! clocks over all lanes ([`ClockScope::AllRanks`]), and what these leave unordered is a race.

use super::call::ExecutedCall;
use super::clock::{ClockStamp, LaneMoment, VectorClocks};
use super::counterexample::{AccessKind, ChunkAccess, Violation};
use super::execution::Firing;
use super::memory::CellLayout;
use super::numbering::MessageNumbering;
use crate::flat::StepView;
use crate::schedule::Chunk;

/// No loan, or no contested cell.
const NONE: u32 = u32::MAX;

/// The lanes that a clock has components for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockScope {
    /// Those of the rank: what seems to be a race may be none.
    Rank,
    /// Those of all ranks.
    AllRanks,
}

/// A read of a cell. It must come before the next write, and so must the end of the loan, if the
/// read lasts beyond its step because a message is this memory.
#[derive(Clone, Copy)]
struct CellRead {
    at: LaneMoment,
    loan: Option<u32>,
}

/// The last write of a cell, and the reads since then.
#[derive(Clone, Default)]
struct CellUses {
    write: Option<LaneMoment>,
    reads: Vec<CellRead>,
}

/// The messages of one firing that may be memory of the sender.
struct MemoryLoan {
    /// How many are not received yet; counted only where the clocks follow messages.
    pending: u32,
    receivers: Vec<LaneMoment>,
    /// Firings that wait for the release of all of them.
    waiters: Vec<LaneMoment>,
}

/// Checks one execution of a schedule for races.
pub(super) struct RaceDetector<'a> {
    call: &'a ExecutedCall,
    layout: &'a CellLayout,
    numbering: &'a MessageNumbering,
    scope: ClockScope,
    clocks: VectorClocks,
    contested: ContestedCells,
    /// By contested cell and tile.
    uses: Vec<CellUses>,
    loans: Vec<MemoryLoan>,
    /// By message slot the sender's stamp, and its loan.
    messages: Vec<(ClockStamp, u32)>,
    /// By step and tile, for steps that some `after` names: stamp and loan.
    done: Vec<(ClockStamp, u32)>,
    /// By step how many `after` lists name it.
    waiting_steps: Vec<u32>,
}

impl<'a> RaceDetector<'a> {
    /// A detector for the first call; None where no race is possible because every cell that is
    /// written is used by one lane, which is in order by itself and waits for its own loans.
    pub(super) fn new(
        calls: &'a [ExecutedCall],
        layout: &'a CellLayout,
        numbering: &'a MessageNumbering,
        scope: ClockScope,
    ) -> Option<Self> {
        let call = &calls[0];
        let contested = ContestedCells::new(call, layout);
        if contested.count == 0 {
            return None;
        }
        let mut waiting_steps = vec![0; call.flat.steps.len()];
        for lane in &call.flat.lanes {
            for step in lane.first_step..lane.first_step + lane.steps {
                for after in call.flat.step(step).after {
                    waiting_steps[after.step as usize] += 1;
                }
            }
        }
        let columns: Vec<u32> = match scope {
            ClockScope::Rank => call.flat.lanes.iter().map(|lane| lane.index).collect(),
            ClockScope::AllRanks => (0..call.flat.lanes.len() as u32).collect(),
        };
        let tiles = call.tiles as usize;
        Some(Self {
            call,
            layout,
            numbering,
            scope,
            clocks: VectorClocks::new(columns),
            uses: vec![CellUses::default(); contested.count as usize * tiles],
            contested,
            loans: Vec::new(),
            messages: match scope {
                ClockScope::Rank => Vec::new(),
                ClockScope::AllRanks => vec![(ClockStamp::NONE, NONE); numbering.total],
            },
            done: vec![(ClockStamp::NONE, NONE); call.flat.steps.len() * tiles],
            waiting_steps,
        })
    }

    /// Checks a firing. Calls after the first are not checked: they have one lane per rank.
    pub(super) fn fire(&mut self, firing: &Firing) -> Result<(), Violation> {
        let Firing { call: 0, lane, step, position, tile } = *firing else { return Ok(()) };
        let call = self.call;
        let rank = call.flat.lanes[lane as usize].rank;
        if self.scope == ClockScope::Rank && !self.contested.ranks[rank as usize] {
            return Ok(());
        }
        let count = tile * call.flat.lanes[lane as usize].steps + position + 1;
        let now = LaneMoment { lane, count };
        let view = call.flat.step(step);
        self.clocks.set(now);
        self.follow(firing, view, now);
        let loan = self.lend(firing, view);
        self.use_memory(firing, view, now, loan)?;
        self.publish(firing, view, loan);
        Ok(())
    }

    /// Joins the clocks of all that the firing comes after.
    fn follow(&mut self, firing: &Firing, view: StepView<'_>, now: LaneMoment) {
        let Firing { lane, tile, .. } = *firing;
        let call = self.call;
        for after in view.after {
            let (stamp, loan) = self.done[self.done_index(after.step, tile)];
            self.clocks.join(lane, stamp);
            if loan != NONE {
                self.loans[loan as usize].waiters.push(now);
            }
        }
        if self.scope == ClockScope::Rank {
            return;
        }
        for (link, ordinal) in view.received() {
            let message = self.numbering.message(0, call, tile, link, ordinal);
            let (stamp, loan) = self.messages[self.numbering.slot(link, message)];
            self.clocks.join(lane, stamp);
            if loan != NONE {
                let loan = &mut self.loans[loan as usize];
                loan.pending -= 1;
                loan.receivers.push(now);
            }
        }
    }

    /// Begins a loan if the step's messages may be contested memory.
    fn lend(&mut self, firing: &Firing, view: StepView<'_>) -> u32 {
        let mut lent = view.lent();
        if !lent.any(|chunk| self.contested.number(self.cell(firing, chunk)) != NONE) {
            return NONE;
        }
        let pending = view.sent().count() as u32;
        self.loans.push(MemoryLoan { pending, receivers: Vec::new(), waiters: Vec::new() });
        self.loans.len() as u32 - 1
    }

    /// The cell of a chunk in the first tile, by which contested cells are numbered.
    fn cell(&self, firing: &Firing, chunk: Chunk) -> usize {
        let rank = self.call.flat.lanes[firing.lane as usize].rank;
        self.layout.cell(0, self.call, rank, chunk, 0)
    }

    /// The index in `uses` of a chunk, if it is contested. Scratch is the same memory in every
    /// tile.
    fn uses_index(&self, firing: &Firing, chunk: Chunk) -> Option<usize> {
        let number = self.contested.number(self.cell(firing, chunk));
        let tile = if matches!(chunk, Chunk::Scratch(_)) { 0 } else { firing.tile };
        (number != NONE).then(|| (number * self.call.tiles + tile) as usize)
    }

    fn use_memory(
        &mut self,
        firing: &Firing,
        view: StepView<'_>,
        now: LaneMoment,
        loan: u32,
    ) -> Result<(), Violation> {
        let lane = firing.lane;
        for chunk in view.read() {
            let Some(index) = self.uses_index(firing, chunk) else { continue };
            let uses = &mut self.uses[index];
            if let Some(write) = uses.write.filter(|&write| !self.clocks.is_before(write, lane)) {
                return Err(self.race(chunk, (write, AccessKind::Write), (now, AccessKind::Read)));
            }
            uses.reads.push(CellRead { at: now, loan: None });
        }
        for chunk in view.written() {
            let Some(index) = self.uses_index(firing, chunk) else { continue };
            let uses = &self.uses[index];
            if let Some(write) = uses.write.filter(|&write| !self.clocks.is_before(write, lane)) {
                return Err(self.race(chunk, (write, AccessKind::Write), (now, AccessKind::Write)));
            }
            for read in &uses.reads {
                if !self.clocks.is_before(read.at, lane) {
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
            self.uses[index].write = Some(now);
            self.uses[index].reads.clear();
        }
        if loan != NONE {
            for chunk in view.lent() {
                if let Some(index) = self.uses_index(firing, chunk) {
                    self.uses[index].reads.push(CellRead { at: now, loan: Some(loan) });
                }
            }
        }
        Ok(())
    }

    /// Whether the read's messages are released before a write by `lane` now, in every execution.
    fn is_returned(&self, read: &CellRead, lane: u32) -> bool {
        let Some(loan) = read.loan.filter(|_| read.at.lane != lane) else { return true };
        let MemoryLoan { pending, receivers, waiters } = &self.loans[loan as usize];
        let is_before = |moment: &LaneMoment| self.clocks.is_before(*moment, lane);
        waiters.iter().any(is_before) || (*pending == 0 && receivers.iter().all(is_before))
    }

    /// Leaves the stamp of the firing with its messages and for the steps that wait for it.
    fn publish(&mut self, firing: &Firing, view: StepView<'_>, loan: u32) {
        let Firing { lane, step, tile, .. } = *firing;
        let waiting_steps = self.waiting_steps[step as usize];
        let sent = match self.scope {
            ClockScope::Rank => 0,
            ClockScope::AllRanks => view.sent().count() as u32,
        };
        if waiting_steps + sent == 0 {
            return;
        }
        let stamp = self.clocks.publish(lane, waiting_steps + sent);
        if sent > 0 {
            for (link, ordinal) in view.sent() {
                let message = self.numbering.message(0, self.call, tile, link, ordinal);
                self.messages[self.numbering.slot(link, message)] = (stamp, loan);
            }
        }
        let index = self.done_index(step, tile);
        self.done[index] = (stamp, loan);
    }

    fn done_index(&self, step: u32, tile: u32) -> usize {
        (step * self.call.tiles + tile) as usize
    }

    fn race(
        &self,
        chunk: Chunk,
        first: (LaneMoment, AccessKind),
        second: (LaneMoment, AccessKind),
    ) -> Violation {
        let access = |(LaneMoment { lane, count }, kind)| {
            let steps = self.call.flat.lanes[lane as usize].steps;
            let (tile, position) = ((count - 1) / steps, (count - 1) % steps);
            Box::new(ChunkAccess { place: self.call.place(0, lane, position, tile), kind })
        };
        let rank = self.call.flat.lanes[first.0.lane as usize].rank;
        Violation::Race { rank, chunk, first: access(first), second: access(second) }
    }
}

/// The cells that several lanes use and at least one writes.
struct ContestedCells {
    /// By cell of the first tile its number, or [`NONE`] if it is not contested.
    numbers: Vec<u32>,
    count: u32,
    /// The ranks that have any.
    ranks: Vec<bool>,
}

impl ContestedCells {
    fn new(call: &ExecutedCall, layout: &CellLayout) -> Self {
        const SEVERAL: u32 = NONE - 1;
        // By cell the lane that uses it, and whether some lane writes it.
        let mut users = vec![(NONE, false); layout.cells];
        for (number, lane) in (0..).zip(&call.flat.lanes) {
            if call.flat.lanes_of(lane.rank).len() < 2 {
                continue;
            }
            let mut used = |chunk, writes| {
                let (user, written) = &mut users[layout.cell(0, call, lane.rank, chunk, 0)];
                *user = if *user == NONE || *user == number { number } else { SEVERAL };
                *written |= writes;
            };
            for step in (lane.first_step..lane.first_step + lane.steps).map(|at| call.flat.step(at))
            {
                step.read().for_each(|chunk| used(chunk, false));
                step.written().for_each(|chunk| used(chunk, true));
            }
        }
        let mut contested =
            Self { numbers: Vec::new(), count: 0, ranks: vec![false; call.flat.nranks as usize] };
        contested.numbers = users
            .iter()
            .map(|user| {
                let number = if *user == (SEVERAL, true) { contested.count } else { NONE };
                contested.count += u32::from(number != NONE);
                number
            })
            .collect();
        for lane in &call.flat.lanes {
            let steps = lane.first_step..lane.first_step + lane.steps;
            let uses_one = steps.map(|at| call.flat.step(at)).any(|step| {
                let cell = |chunk| layout.cell(0, call, lane.rank, chunk, 0);
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
