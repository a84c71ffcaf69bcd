//! One call of an execution: a well-formed schedule in flat form, and how many tiles of it run.

use super::counterexample::{StepPlace, Violation};
use crate::flat::{FlatLane, FlatLink, FlatSchedule};
use crate::schedule::{Chunk, Operand, Schedule, Step};
use crate::types::{Collective, Rank};

/// A well-formed schedule and the number of tiles for which it is executed. Call 0 is the schedule
/// under proof, call 1 the exchange that follows it.
pub(super) struct ExecutedCall {
    pub(super) collective: Collective,
    /// Chunks per rank block, see [`Collective`].
    pub(super) parts: u32,
    /// Input chunks per rank.
    pub(super) inputs: u32,
    /// Output chunks per rank.
    pub(super) outputs: u32,
    /// Scratch chunks per rank.
    pub(super) scratch: u32,
    pub(super) tiles: u32,
    pub(super) flat: FlatSchedule,
}

/// The rule that a schedule breaks, and the step that breaks it.
pub(super) type IllFormed = (Violation, Option<StepPlace>);

impl ExecutedCall {
    /// Checks that `schedule` is well formed and lays it out; it will be executed for `tiles`
    /// tiles.
    pub(super) fn new(schedule: &Schedule, tiles: u32) -> Result<Self, Box<IllFormed>> {
        check_declarations(schedule)?;
        let (inputs, outputs) = (schedule.input_chunks(), schedule.output_chunks());
        let check = StepCheck { schedule, inputs, outputs };
        let flat = FlatSchedule::checked(schedule, |lanes, lane, index, step| {
            check.step(lanes, lane, step).map_err(|reason| {
                let FlatLane { rank, index: lane, .. } = lane;
                let place = StepPlace { rank, lane, step: index, tile: 0, call: 0, content: *step };
                Box::new((Violation::Malformed(reason), Some(place)))
            })
        })?;
        let call = Self {
            collective: schedule.collective,
            parts: schedule.parts,
            inputs,
            outputs,
            scratch: schedule.scratch,
            tiles,
            flat,
        };
        call.check_links()?;
        Ok(call)
    }

    /// One execution of step `index` of lane number `lane`, in call number `call`.
    pub(super) fn place(&self, call: usize, lane: u32, index: u32, tile: u32) -> StepPlace {
        let FlatLane { rank, index: lane, first_step, .. } = self.flat.lanes[lane as usize];
        let content = self.flat.original_step(first_step + index);
        StepPlace { rank, lane, step: index, tile, call, content }
    }

    /// Each link has one lane at each end, and every message that is sent is received.
    fn check_links(&self) -> Result<(), Box<IllFormed>> {
        let links = &self.flat.links;
        if links.iter().any(|link| link.is_shared) {
            return Err(Box::new(self.shared_link()));
        }
        match links.iter().find(|link| link.sent != link.received) {
            Some(link) => Err(Box::new((unbalanced(link), None))),
            None => Ok(()),
        }
    }

    /// The first step at which a second lane comes to an end of a link.
    fn shared_link(&self) -> IllFormed {
        for number in 0..self.flat.lanes.len() as u32 {
            for (index, step) in (0..).zip(self.flat.steps_of(number)) {
                let step = self.flat.step(step);
                let fed = step.sent().map(|(link, _)| (link, true));
                let drained = step.received().map(|(link, _)| (link, false));
                for (link, is_fed) in drained.chain(fed) {
                    let link = &self.flat.links[link as usize];
                    let (lane, verb) =
                        if is_fed { (link.feeder, "fed") } else { (link.drainer, "drained") };
                    if lane != number {
                        let FlatLink { source, destination, channel, .. } = link;
                        let reason = format!(
                            "link {source} -> {destination}, channel {channel}, is {verb} by \
                             another lane too"
                        );
                        let place = self.place(0, number, index, 0);
                        return (Violation::Malformed(reason), Some(place));
                    }
                }
            }
        }
        unreachable!("a link is shared only if a second lane uses one of its ends")
    }
}

/// Whether the collective puts anything into the receive buffer of `rank`.
pub(super) fn has_output(collective: Collective, rank: Rank) -> bool {
    match collective {
        Collective::Reduce { root } | Collective::Gather { root } => rank == root,
        _ => true,
    }
}

/// Whether the collective takes anything from the send buffer of `rank`.
fn has_input(collective: Collective, rank: Rank) -> bool {
    match collective {
        Collective::Broadcast { root } | Collective::Scatter { root } => rank == root,
        _ => true,
    }
}

fn unbalanced(link: &FlatLink) -> Violation {
    Violation::Unbalanced {
        source_rank: link.source,
        destination: link.destination,
        channel: link.channel,
        sent: link.sent,
        received: link.received,
    }
}

fn check_declarations(schedule: &Schedule) -> Result<(), Box<IllFormed>> {
    let Schedule { nranks, parts, credit, channels, collective, .. } = *schedule;
    let reason = if nranks == 0 || parts == 0 || credit == 0 || channels == 0 {
        "ranks, parts, credits and channels must each be at least one"
    } else if collective.root().is_some_and(|root| root >= nranks) {
        "the root is not among the ranks"
    } else {
        return Ok(());
    };
    Err(Box::new((Violation::Malformed(reason.to_owned()), None)))
}

/// The rules that hold for each step by itself.
struct StepCheck<'a> {
    schedule: &'a Schedule,
    inputs: u32,
    outputs: u32,
}

impl StepCheck<'_> {
    /// Checks a step of `lane`; `lanes` are all lanes of its rank.
    fn step(&self, lanes: &[FlatLane], lane: FlatLane, step: &Step) -> Result<(), String> {
        let Schedule { collective, channels, .. } = *self.schedule;
        if step.inputs.is_empty() || step.outputs.is_empty() {
            return Err("a step has at least one input and one output".to_owned());
        }
        if step.finish && !collective.reduces() {
            return Err(format!("{collective} has no reduction to finish"));
        }
        for &operand in step.inputs.iter().chain(&step.outputs) {
            self.operand(lane.rank, operand)?;
            if let Operand::Peer { channel, .. } = operand
                && channel >= channels
            {
                return Err(format!("{operand} is on a channel that is not below {channels}"));
            }
        }
        for (i, output) in step.outputs.iter().enumerate() {
            if matches!(output, Operand::Local(Chunk::Input(_))) {
                return Err(format!(
                    "{output} is a chunk of the send buffer, which must not be written"
                ));
            }
            if step.outputs[..i].contains(output) {
                return Err(format!("{output} is an output twice"));
            }
        }
        for (i, input) in step.inputs.iter().enumerate() {
            if matches!(input, Operand::Peer { .. }) && step.inputs[..i].contains(input) {
                return Err(format!(
                    "{input} is an input twice; a step receives at most one message of a link"
                ));
            }
        }
        for after in &step.after {
            if after.lane == lane.index {
                return Err(
                    "`after` must name another lane; a lane is in order by itself".to_owned()
                );
            }
            if lanes.get(after.lane as usize).is_none_or(|other| after.step >= other.steps) {
                return Err(format!("there is no step {}:{}", after.lane, after.step));
            }
        }
        Ok(())
    }

    fn operand(&self, rank: Rank, operand: Operand) -> Result<(), String> {
        let Schedule { collective, nranks, scratch, .. } = *self.schedule;
        let (index, limit) = match operand {
            Operand::Local(Chunk::Input(i)) if has_input(collective, rank) => (i, self.inputs),
            Operand::Local(Chunk::Output(i)) if has_output(collective, rank) => (i, self.outputs),
            Operand::Local(Chunk::Input(i) | Chunk::Output(i)) => (i, 0),
            Operand::Local(Chunk::Scratch(i)) => (i, scratch),
            Operand::Peer { rank: peer, .. } if peer == rank => {
                return Err("a rank has no link to itself".to_owned());
            }
            Operand::Peer { rank: peer, .. } => (peer, nranks),
        };
        if index < limit { Ok(()) } else { Err(format!("{operand} does not exist on this rank")) }
    }
}
