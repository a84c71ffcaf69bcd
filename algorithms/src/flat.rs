//! A schedule laid out in flat arrays, with both ends of every link found.
//!
//! The verifier and the cost model execute this form, so that neither has to compute a step twice
//! or to look up a link while it runs. Lanes are numbered through all ranks, steps through all
//! lanes, links by their source and then by the order in which the source first sends on them, and
//! the messages of one tile by link.

use std::convert::Infallible;
use std::ops::Range;

use crate::schedule::{After, Channel, Chunk, Operand, Schedule, Step};
use crate::types::Rank;

/// No lane: the end of a link that no step uses.
pub(crate) const NONE: u32 = u32::MAX;

/// A schedule in flat arrays, made once and then executed any number of times.
pub struct FlatSchedule {
    pub(crate) nranks: u32,
    pub(crate) lanes: Vec<FlatLane>,
    /// The number of the first lane of each rank, and the number of lanes at the end.
    first_lane: Vec<u32>,
    pub(crate) steps: Vec<FlatStep>,
    operands: Vec<FlatOperand>,
    after: Vec<FlatAfter>,
    pub(crate) links: Vec<FlatLink>,
    /// How many messages are sent in one tile.
    pub(crate) messages: u32,
}

/// A lane of a rank.
#[derive(Clone, Copy)]
pub(crate) struct FlatLane {
    pub(crate) rank: Rank,
    /// Its number on the rank.
    pub(crate) index: u32,
    /// The number of its first step.
    pub(crate) first_step: u32,
    pub(crate) steps: u32,
}

/// Where the operands and dependencies of a step stand in their arrays. [`FlatSchedule::step`]
/// gives the step itself.
pub(crate) struct FlatStep {
    first_operand: u32,
    first_after: u32,
    inputs: u8,
    outputs: u8,
    afters: u8,
    finish: bool,
    /// The `after` of some step names this one.
    pub(crate) is_awaited: bool,
}

/// An input or an output of a step.
#[derive(Clone, Copy)]
pub(crate) enum FlatOperand {
    /// Memory of the rank.
    Local(Chunk),
    /// Message number `ordinal`, counted per tile, on link number `link`.
    Message { link: u32, ordinal: u32 },
}

/// A step of another lane of the same rank that must be done first.
#[derive(Clone, Copy)]
pub(crate) struct FlatAfter {
    pub(crate) lane: u32,
    pub(crate) step: u32,
}

/// A link, with what the schedule does on it in one tile.
pub(crate) struct FlatLink {
    pub(crate) source: Rank,
    pub(crate) destination: Rank,
    pub(crate) channel: Channel,
    /// The lane that first sends on it, [`NONE`] if none does.
    pub(crate) feeder: u32,
    /// The lane that first receives from it, [`NONE`] if none does.
    pub(crate) drainer: u32,
    /// Messages sent per tile.
    pub(crate) sent: u32,
    /// Messages received per tile.
    pub(crate) received: u32,
    /// The number of its first message among all messages of a tile.
    pub(crate) first_message: u32,
    /// The first operand that names it, in the order of ranks, lanes and steps.
    pub(crate) first_operand: u32,
    /// More than one lane sends on it, or more than one receives from it.
    pub(crate) is_shared: bool,
}

/// A step, as references into the flat arrays.
#[derive(Clone, Copy)]
pub(crate) struct StepView<'a> {
    pub(crate) inputs: &'a [FlatOperand],
    pub(crate) outputs: &'a [FlatOperand],
    pub(crate) after: &'a [FlatAfter],
    pub(crate) finish: bool,
}

/// One end of a message: the operand that names it, while its link is not known yet.
struct MessageEnd {
    rank: Rank,
    peer: Rank,
    channel: Channel,
    is_sent: bool,
    lane: u32,
    operand: u32,
}

impl FlatSchedule {
    /// The flat form of `schedule`. Every step is computed once.
    ///
    /// # Panics
    /// If a step names a rank that does not exist, or waits for a step that does not exist.
    pub fn new(schedule: &Schedule) -> Self {
        let accept = |_: &[FlatLane], _: FlatLane, _: u32, _: &Step| Ok::<(), Infallible>(());
        match Self::checked(schedule, accept) {
            Ok(flat) => flat,
            Err(never) => match never {},
        }
    }

    /// The flat form of `schedule`, if `check` accepts every step. `check` is called with all lanes
    /// of the rank, the step's lane, its index there and the step, before the step is laid out.
    pub(crate) fn checked<E>(
        schedule: &Schedule,
        mut check: impl FnMut(&[FlatLane], FlatLane, u32, &Step) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut flat = Self {
            nranks: schedule.nranks,
            lanes: Vec::new(),
            first_lane: vec![0],
            steps: Vec::new(),
            operands: Vec::new(),
            after: Vec::new(),
            links: Vec::new(),
            messages: 0,
        };
        let mut ends = Vec::new();
        for rank in 0..schedule.nranks {
            flat.add_rank(schedule, rank, &mut ends, &mut check)?;
        }
        flat.find_links(&ends);
        Ok(flat)
    }

    /// Step number `step`.
    pub(crate) fn step(&self, step: u32) -> StepView<'_> {
        self.view(&self.steps[step as usize])
    }

    /// The operands and dependencies of `step`, which is one of [`Self::steps`].
    pub(crate) fn view(&self, step: &FlatStep) -> StepView<'_> {
        let FlatStep { first_operand, first_after, inputs, outputs, afters, finish, .. } = *step;
        let count = usize::from(inputs) + usize::from(outputs);
        let operands = &self.operands[first_operand as usize..][..count];
        let (inputs, outputs) = operands.split_at(inputs.into());
        let after = &self.after[first_after as usize..][..afters.into()];
        StepView { inputs, outputs, after, finish }
    }

    /// The numbers of the lanes of `rank`.
    pub(crate) fn lanes_of(&self, rank: Rank) -> Range<u32> {
        self.first_lane[rank as usize]..self.first_lane[rank as usize + 1]
    }

    /// The numbers of the steps of lane number `lane`.
    pub(crate) fn steps_of(&self, lane: u32) -> Range<u32> {
        let FlatLane { first_step, steps, .. } = self.lanes[lane as usize];
        first_step..first_step + steps
    }

    /// Gives the links the numbers that they have in `other`, which uses the same links.
    pub(crate) fn number_links_as_in(&mut self, other: &Self) {
        let by_ends = |flat: &Self| {
            let mut numbers: Vec<u32> = (0..flat.links.len() as u32).collect();
            numbers.sort_unstable_by_key(|&number| flat.links[number as usize].ends());
            numbers
        };
        let pairs = by_ends(self).into_iter().zip(by_ends(other));
        let mut new_numbers = vec![NONE; self.links.len()];
        pairs.for_each(|(own, other)| new_numbers[own as usize] = other);
        for operand in &mut self.operands {
            if let FlatOperand::Message { link, .. } = operand {
                *link = new_numbers[*link as usize];
            }
        }
        let mut links: Vec<_> = new_numbers.into_iter().zip(self.links.drain(..)).collect();
        links.sort_unstable_by_key(|&(number, _)| number);
        self.links.extend(links.into_iter().map(|(_, link)| link));
    }

    /// Step number `step` in the form in which the schedule gave it.
    pub(crate) fn original_step(&self, step: u32) -> Step {
        let StepView { inputs, outputs, after, finish } = self.step(step);
        let operand = |operand: &FlatOperand, is_sent: bool| match *operand {
            FlatOperand::Local(chunk) => Operand::Local(chunk),
            FlatOperand::Message { link, .. } => {
                let FlatLink { source, destination, channel, .. } = self.links[link as usize];
                Operand::Peer { rank: if is_sent { destination } else { source }, channel }
            }
        };
        let after = after.iter().map(|after| {
            let lane = &self.lanes[after.lane as usize];
            After { lane: lane.index, step: after.step - lane.first_step }
        });
        Step {
            inputs: inputs.iter().map(|input| operand(input, false)).collect(),
            outputs: outputs.iter().map(|output| operand(output, true)).collect(),
            after: after.collect(),
            finish,
        }
    }

    fn add_rank<E>(
        &mut self,
        schedule: &Schedule,
        rank: Rank,
        ends: &mut Vec<MessageEnd>,
        check: &mut impl FnMut(&[FlatLane], FlatLane, u32, &Step) -> Result<(), E>,
    ) -> Result<(), E> {
        let (first_lane, mut first_step) = (self.lanes.len(), self.steps.len() as u32);
        for index in 0..schedule.lanes(rank) {
            let steps = schedule.steps(rank, index);
            self.lanes.push(FlatLane { rank, index, first_step, steps });
            first_step += steps;
        }
        self.first_lane.push(self.lanes.len() as u32);
        let first_after = self.after.len();
        for number in first_lane..self.lanes.len() {
            let lane = self.lanes[number];
            for index in 0..lane.steps {
                let step = schedule.step(rank, lane.index, index);
                check(&self.lanes[first_lane..], lane, index, &step)?;
                self.add_step(number as u32, first_lane as u32, &step, ends);
            }
        }
        for after in &self.after[first_after..] {
            self.steps[after.step as usize].is_awaited = true;
        }
        Ok(())
    }

    /// Adds a step to lane number `lane`; `first_lane` is the number of its rank's first lane.
    fn add_step(&mut self, lane: u32, first_lane: u32, step: &Step, ends: &mut Vec<MessageEnd>) {
        self.steps.push(FlatStep {
            first_operand: self.operands.len() as u32,
            first_after: self.after.len() as u32,
            inputs: step.inputs.len() as u8,
            outputs: step.outputs.len() as u8,
            afters: step.after.len() as u8,
            finish: step.finish,
            is_awaited: false,
        });
        let lanes = &self.lanes;
        self.after.extend(step.after.iter().map(|after| {
            let lane = first_lane + after.lane;
            FlatAfter { lane, step: lanes[lane as usize].first_step + after.step }
        }));
        let rank = lanes[lane as usize].rank;
        for (operands, is_sent) in [(&step.inputs, false), (&step.outputs, true)] {
            for operand in operands {
                let flat = match *operand {
                    Operand::Local(chunk) => FlatOperand::Local(chunk),
                    Operand::Peer { rank: peer, channel } => {
                        let operand = self.operands.len() as u32;
                        ends.push(MessageEnd { rank, peer, channel, is_sent, lane, operand });
                        FlatOperand::Message { link: NONE, ordinal: NONE }
                    }
                };
                self.operands.push(flat);
            }
        }
    }

    /// Numbers the links and their messages. Links are looked up in a row by peer and channel: one
    /// row at a time, first for each source, then for each destination.
    fn find_links(&mut self, ends: &[MessageEnd]) {
        let channels = ends.iter().map(|end| usize::from(end.channel) + 1).max().unwrap_or(0);
        let cell =
            |rank: Rank, end: &MessageEnd| rank as usize * channels + usize::from(end.channel);
        let mut row = vec![NONE; self.nranks as usize * channels];
        // For each destination the links to it, each with its cell in the destination's row.
        let mut incoming: Vec<Vec<(usize, u32)>> = vec![Vec::new(); self.nranks as usize];
        for own in ends.chunk_by(|a, b| a.rank == b.rank) {
            let first_link = self.links.len();
            for end in own.iter().filter(|end| end.is_sent) {
                let number = &mut row[cell(end.peer, end)];
                if *number == NONE {
                    *number = self.links.len() as u32;
                    incoming[end.peer as usize].push((cell(end.rank, end), *number));
                    self.links.push(FlatLink::new(end.rank, end.peer, end));
                }
                let link = &mut self.links[*number as usize];
                let message = FlatOperand::Message { link: *number, ordinal: link.sent };
                self.operands[end.operand as usize] = message;
                link.sent += 1;
                attach(&mut link.feeder, end.lane, &mut link.is_shared);
            }
            own.iter().filter(|end| end.is_sent).for_each(|end| row[cell(end.peer, end)] = NONE);
            for link in &mut self.links[first_link..] {
                link.first_message = self.messages;
                self.messages += link.sent;
            }
        }
        for own in ends.chunk_by(|a, b| a.rank == b.rank) {
            let incoming = &incoming[own[0].rank as usize];
            incoming.iter().for_each(|&(cell, link)| row[cell] = link);
            for end in own.iter().filter(|end| !end.is_sent) {
                let number = &mut row[cell(end.peer, end)];
                if *number == NONE {
                    // No step sends on this link, so its messages never arrive.
                    *number = self.links.len() as u32;
                    let link = FlatLink::new(end.peer, end.rank, end);
                    self.links.push(FlatLink { first_message: self.messages, ..link });
                }
                let link = &mut self.links[*number as usize];
                let message = FlatOperand::Message { link: *number, ordinal: link.received };
                self.operands[end.operand as usize] = message;
                link.received += 1;
                link.first_operand = link.first_operand.min(end.operand);
                attach(&mut link.drainer, end.lane, &mut link.is_shared);
            }
            incoming.iter().for_each(|&(cell, _)| row[cell] = NONE);
            own.iter().filter(|end| !end.is_sent).for_each(|end| row[cell(end.peer, end)] = NONE);
        }
    }
}

/// Notes that `lane` uses one end of a link; `is_shared` becomes true if another lane used it.
fn attach(known: &mut u32, lane: u32, is_shared: &mut bool) {
    if *known == NONE {
        *known = lane;
    }
    *is_shared |= *known != lane;
}

impl FlatLink {
    /// A link that `end` is the first to name.
    fn new(source: Rank, destination: Rank, end: &MessageEnd) -> Self {
        Self {
            source,
            destination,
            channel: end.channel,
            feeder: NONE,
            drainer: NONE,
            sent: 0,
            received: 0,
            first_message: 0,
            first_operand: end.operand,
            is_shared: false,
        }
    }

    fn ends(&self) -> (Rank, Rank, Channel) {
        (self.source, self.destination, self.channel)
    }

    /// The number, among all messages of a tile, of message `ordinal`; None if it is never sent.
    pub(crate) fn message(&self, ordinal: u32) -> Option<u32> {
        (ordinal < self.sent).then(|| self.first_message + ordinal)
    }
}

impl FlatOperand {
    /// The chunk, if it is memory of the rank.
    pub(crate) fn chunk(self) -> Option<Chunk> {
        match self {
            Self::Local(chunk) => Some(chunk),
            Self::Message { .. } => None,
        }
    }

    /// The link and the number in the tile, if it is a message.
    fn message(self) -> Option<(u32, u32)> {
        match self {
            Self::Message { link, ordinal } => Some((link, ordinal)),
            Self::Local(_) => None,
        }
    }
}

impl<'a> StepView<'a> {
    /// The messages that it receives: link, and number in the tile.
    pub(crate) fn received(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.inputs.iter().filter_map(|input| input.message())
    }

    /// The messages that it sends: link, and number in the tile.
    pub(crate) fn sent(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.outputs.iter().filter_map(|output| output.message())
    }

    /// The chunks that it reads.
    pub(crate) fn read(self) -> impl Iterator<Item = Chunk> + 'a {
        self.inputs.iter().filter_map(|input| input.chunk())
    }

    /// The chunks that it writes.
    pub(crate) fn written(self) -> impl Iterator<Item = Chunk> + 'a {
        self.outputs.iter().filter_map(|output| output.chunk())
    }

    /// The chunks that its messages may be by rendezvous; see [`crate::schedule`].
    pub(crate) fn lent(self) -> impl Iterator<Item = Chunk> + 'a {
        let from = if self.sent().next().is_none() {
            &[]
        } else if self.written().next().is_some() {
            self.outputs
        } else if self.inputs.len() == 1 {
            self.inputs
        } else {
            &[]
        };
        from.iter().filter_map(|operand| operand.chunk())
    }
}
