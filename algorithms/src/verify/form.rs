//! Whether a schedule is well formed, and its steps laid out flat for the executions.

use rustc_hash::FxHashMap;

use super::counterexample::{StepPlace, Violation};
use crate::schedule::{After, Channel, Chunk, Operand, Schedule, Step};
use crate::types::{Collective, Rank};

/// No lane: of a link's end, until one is found.
const NONE: u32 = u32::MAX;

/// A well-formed schedule, decoded. Lanes are numbered through all ranks, steps through all lanes.
pub(super) struct Form {
    pub(super) collective: Collective,
    pub(super) nranks: u32,
    pub(super) parts: u32,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) scratch: u32,
    /// How many tiles it is executed for.
    pub(super) tiles: u32,
    pub(super) lanes: Vec<Lane>,
    /// Per rank the first of its lanes, and their number at the end.
    pub(super) first_lane: Vec<u32>,
    steps: Vec<Span>,
    operands: Vec<Resolved>,
    after: Vec<After>,
    pub(super) links: Vec<Link>,
}

/// Where a step's parts are: inputs and then outputs in `operands`, and what it comes after.
struct Span {
    operands: u32,
    after: u32,
    inputs: u8,
    outputs: u8,
    afters: u8,
    finish: bool,
}

/// A step, decoded.
#[derive(Clone, Copy)]
pub(super) struct Decoded<'a> {
    pub(super) inputs: &'a [Resolved],
    pub(super) outputs: &'a [Resolved],
    pub(super) after: &'a [After],
    pub(super) finish: bool,
}

/// A lane of a rank.
pub(super) struct Lane {
    pub(super) rank: Rank,
    /// Its number on the rank.
    pub(super) index: u32,
    pub(super) first_step: u32,
    pub(super) steps: u32,
}

/// A link, with what the schedule does on it in one tile.
pub(super) struct Link {
    pub(super) source: Rank,
    pub(super) destination: Rank,
    pub(super) channel: Channel,
    pub(super) feeder: u32,
    pub(super) drainer: u32,
    /// Messages per tile.
    pub(super) messages: u32,
    drained: u32,
}

/// An operand with its link found.
#[derive(Clone, Copy)]
pub(super) enum Resolved {
    /// Memory of the rank.
    Local(Chunk),
    /// The message of that number, in the tile, on that link.
    Message { link: u32, ordinal: u32 },
}

/// Numbers of links, shared by schedules that use the same ones.
pub(super) type LinkNumbers = FxHashMap<(Rank, Rank, Channel), u32>;

/// What is ill-formed, and at which step.
pub(super) type Malformed = (Violation, Option<StepPlace>);

impl Form {
    /// Decodes and checks `schedule`; it will be executed for `tiles` tiles.
    pub(super) fn new(
        schedule: &Schedule,
        tiles: u32,
        numbers: &mut LinkNumbers,
    ) -> Result<Self, Box<Malformed>> {
        check_declarations(schedule)?;
        let mut form = Self {
            collective: schedule.collective,
            nranks: schedule.nranks,
            parts: schedule.parts,
            inputs: schedule.input_chunks(),
            outputs: schedule.output_chunks(),
            scratch: schedule.scratch,
            tiles,
            lanes: Vec::new(),
            first_lane: vec![0],
            steps: Vec::new(),
            operands: Vec::new(),
            after: Vec::new(),
            links: Vec::new(),
        };
        for rank in 0..schedule.nranks {
            for index in 0..schedule.lanes(rank) {
                form.add_lane(schedule, rank, index, numbers)?;
            }
            form.first_lane.push(form.lanes.len() as u32);
        }
        match form.links.iter().find(|link| link.messages != link.drained) {
            Some(link) => Err(Box::new((link.unbalanced(), None))),
            None => Ok(form),
        }
    }

    fn add_lane(
        &mut self,
        schedule: &Schedule,
        rank: Rank,
        index: u32,
        numbers: &mut LinkNumbers,
    ) -> Result<(), Box<Malformed>> {
        let steps = schedule.steps(rank, index);
        let first_step = self.steps.len() as u32;
        self.lanes.push(Lane { rank, index, first_step, steps });
        for at in 0..steps {
            let step = schedule.step(rank, index, at);
            self.check_step(schedule, rank, index, &step)
                .and_then(|()| self.add_step(rank, &step, numbers))
                .map_err(|reason| {
                    let place =
                        StepPlace { rank, lane: index, step: at, tile: 0, call: 0, text: step };
                    Box::new((Violation::Malformed(reason), Some(place)))
                })?;
        }
        Ok(())
    }

    fn check_step(
        &self,
        schedule: &Schedule,
        rank: Rank,
        lane: u32,
        step: &Step,
    ) -> Result<(), String> {
        if step.inputs.is_empty() || step.outputs.is_empty() {
            return Err("a step has at least one input and one output".to_owned());
        }
        if step.finish && !self.collective.reduces() {
            return Err(format!("{} has no reduction to finish", self.collective));
        }
        for &operand in step.inputs.iter().chain(&step.outputs) {
            self.check_operand(rank, operand)?;
            if let Operand::Peer { channel, .. } = operand
                && channel >= schedule.channels
            {
                let channels = schedule.channels;
                return Err(format!("{operand} is on a channel that is not below {channels}"));
            }
        }
        for (i, output) in step.outputs.iter().enumerate() {
            if matches!(output, Operand::Local(Chunk::Input(_))) {
                return Err(format!("{output} is of the send buffer, which is never written"));
            }
            if step.outputs[..i].contains(output) {
                return Err(format!("{output} is twice an output"));
            }
        }
        for (i, input) in step.inputs.iter().enumerate() {
            if matches!(input, Operand::Peer { .. }) && step.inputs[..i].contains(input) {
                return Err(format!(
                    "{input} is twice an input; a step takes one message of a link"
                ));
            }
        }
        for after in &step.after {
            if after.lane == lane {
                return Err("`after` is for other lanes; a lane is in order by itself".to_owned());
            }
            if after.lane >= schedule.lanes(rank) || after.step >= schedule.steps(rank, after.lane)
            {
                return Err(format!("there is no step {}:{}", after.lane, after.step));
            }
        }
        Ok(())
    }

    fn check_operand(&self, rank: Rank, operand: Operand) -> Result<(), String> {
        let (given, taken) = (gives(self.collective, rank), takes(self.collective, rank));
        let (index, limit) = match operand {
            Operand::Local(Chunk::Input(i)) => (i, if given { self.inputs } else { 0 }),
            Operand::Local(Chunk::Output(i)) => (i, if taken { self.outputs } else { 0 }),
            Operand::Local(Chunk::Scratch(i)) => (i, self.scratch),
            Operand::Peer { rank: peer, .. } if peer == rank => {
                return Err("a rank has no link to itself".to_owned());
            }
            Operand::Peer { rank: peer, .. } => (peer, self.nranks),
        };
        if index < limit { Ok(()) } else { Err(format!("{operand} does not exist on this rank")) }
    }

    fn add_step(
        &mut self,
        rank: Rank,
        step: &Step,
        numbers: &mut LinkNumbers,
    ) -> Result<(), String> {
        let lane = self.lanes.len() as u32 - 1;
        self.steps.push(Span {
            operands: self.operands.len() as u32,
            after: self.after.len() as u32,
            inputs: step.inputs.len() as u8,
            outputs: step.outputs.len() as u8,
            afters: step.after.len() as u8,
            finish: step.finish,
        });
        self.after.extend_from_slice(&step.after);
        for (at, &operand) in step.inputs.iter().chain(&step.outputs).enumerate() {
            let sent = at >= step.inputs.len();
            let resolved = match operand {
                Operand::Local(chunk) => Resolved::Local(chunk),
                Operand::Peer { rank: peer, channel } => {
                    let ends = if sent { (rank, peer) } else { (peer, rank) };
                    let link = self.link(ends, channel, numbers);
                    let ordinal = self.links[link as usize].attach(lane, sent)?;
                    Resolved::Message { link, ordinal }
                }
            };
            self.operands.push(resolved);
        }
        Ok(())
    }

    fn link(&mut self, ends: (Rank, Rank), channel: Channel, numbers: &mut LinkNumbers) -> u32 {
        let next = numbers.len() as u32;
        let number = *numbers.entry((ends.0, ends.1, channel)).or_insert(next);
        while self.links.len() <= number as usize {
            // A number that another schedule gave out first is named when this one comes to use it.
            self.links.push(Link {
                source: NONE,
                destination: NONE,
                channel,
                feeder: NONE,
                drainer: NONE,
                messages: 0,
                drained: 0,
            });
        }
        let link = &mut self.links[number as usize];
        (link.source, link.destination, link.channel) = (ends.0, ends.1, channel);
        number
    }

    /// Step number `step`.
    pub(super) fn step(&self, step: u32) -> Decoded<'_> {
        let Span { operands, after, inputs, outputs, afters, finish } = self.steps[step as usize];
        let count = usize::from(inputs) + usize::from(outputs);
        let operands = &self.operands[operands as usize..][..count];
        let (inputs, outputs) = operands.split_at(inputs.into());
        let after = &self.after[after as usize..][..afters.into()];
        Decoded { inputs, outputs, after, finish }
    }

    /// How many steps there are.
    pub(super) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The lanes of `rank`.
    pub(super) fn lanes_of(&self, rank: Rank) -> std::ops::Range<u32> {
        self.first_lane[rank as usize]..self.first_lane[rank as usize + 1]
    }

    /// One execution of a step of the call number `call`.
    pub(super) fn place(&self, call: usize, lane: u32, step: u32, tile: u32) -> StepPlace {
        let Lane { rank, index, first_step, .. } = self.lanes[lane as usize];
        StepPlace { rank, lane: index, step, tile, call, text: self.text(first_step + step) }
    }

    /// Step number `step` as the schedule has it.
    fn text(&self, step: u32) -> Step {
        let Decoded { inputs, outputs, after, finish } = self.step(step);
        let operand = |resolved: &Resolved, sent| match *resolved {
            Resolved::Local(chunk) => Operand::Local(chunk),
            Resolved::Message { link, .. } => {
                let Link { source, destination, channel, .. } = self.links[link as usize];
                Operand::Peer { rank: if sent { destination } else { source }, channel }
            }
        };
        Step {
            inputs: inputs.iter().map(|input| operand(input, false)).collect(),
            outputs: outputs.iter().map(|output| operand(output, true)).collect(),
            after: after.iter().copied().collect(),
            finish,
        }
    }
}

impl Resolved {
    /// The chunk, of what is memory of the rank.
    pub(super) fn chunk(self) -> Option<Chunk> {
        match self {
            Self::Local(chunk) => Some(chunk),
            Self::Message { .. } => None,
        }
    }

    /// The link and the number in the tile, of a message.
    pub(super) fn message(self) -> Option<(u32, u32)> {
        match self {
            Self::Message { link, ordinal } => Some((link, ordinal)),
            Self::Local(_) => None,
        }
    }
}

impl<'a> Decoded<'a> {
    /// The messages that it takes: link, number in the tile.
    pub(super) fn taken(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.inputs.iter().filter_map(|input| input.message())
    }

    /// The messages that it sends.
    pub(super) fn sent(self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.outputs.iter().filter_map(|output| output.message())
    }

    /// The chunks that it reads.
    pub(super) fn read(self) -> impl Iterator<Item = Chunk> + 'a {
        self.inputs.iter().filter_map(|input| input.chunk())
    }

    /// The chunks that it writes.
    pub(super) fn written(self) -> impl Iterator<Item = Chunk> + 'a {
        self.outputs.iter().filter_map(|output| output.chunk())
    }

    /// The chunks that a message of it may be by rendezvous.
    pub(super) fn lent(self) -> impl Iterator<Item = Chunk> + 'a {
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

impl Link {
    /// Counts a message of `lane`, and tells its number in the tile.
    fn attach(&mut self, lane: u32, sent: bool) -> Result<u32, String> {
        let (end, count, verb) = if sent {
            (&mut self.feeder, &mut self.messages, "fed")
        } else {
            (&mut self.drainer, &mut self.drained, "drained")
        };
        if *end != NONE && *end != lane {
            let Self { source, destination, channel, .. } = self;
            return Err(format!(
                "link {source} -> {destination}, channel {channel}, is {verb} by another lane too"
            ));
        }
        *end = lane;
        *count += 1;
        Ok(*count - 1)
    }

    fn unbalanced(&self) -> Violation {
        Violation::Unbalanced {
            source_rank: self.source,
            destination: self.destination,
            channel: self.channel,
            sent: self.messages,
            received: self.drained,
        }
    }
}

/// Whether the collective takes anything from `rank`'s send buffer.
fn gives(collective: Collective, rank: Rank) -> bool {
    match collective {
        Collective::Broadcast { root } | Collective::Scatter { root } => rank == root,
        _ => true,
    }
}

/// Whether the collective puts anything into `rank`'s receive buffer.
pub(super) fn takes(collective: Collective, rank: Rank) -> bool {
    match collective {
        Collective::Reduce { root } | Collective::Gather { root } => rank == root,
        _ => true,
    }
}

fn check_declarations(schedule: &Schedule) -> Result<(), Box<Malformed>> {
    let Schedule { nranks, parts, credit, channels, collective, .. } = *schedule;
    let reason = if nranks == 0 || parts == 0 || credit == 0 || channels == 0 {
        "ranks, parts, credits and channels start at one"
    } else if collective.root().is_some_and(|root| root >= nranks) {
        "the root is not among the ranks"
    } else {
        return Ok(());
    };
    Err(Box::new((Violation::Malformed(reason.to_owned()), None)))
}
