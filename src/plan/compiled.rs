//! The compilation of a schedule for LL messages: the steps of a rank in one fixed order, with
//! every length known, and without the steps that move no bytes.
//!
//! The order comes from a dry run of the schedule for all ranks, which executes it without memory.
//! The steps of a rank run in the order in which they fire there. All ranks compute the same dry
//! run, so blocking in that order cannot deadlock: of the steps that have not run yet, the first in
//! the order of the dry run can always run. Steps without elements are dropped on both ends alike,
//! because every length follows from the call.

use std::collections::{HashMap, HashSet, VecDeque};

use maypole_algorithms::schedule::{Channel, InlineVec};
use maypole_algorithms::{Chunk, Operand, Rank, Schedule, Step};
use maypole_transport::ll::{LL_CAPACITY, LlSender};

use crate::error::Error;
use crate::geometry::Geometry;
use crate::plan::bind::own_mask;

/// An operand of a compiled step: an offset in memory in bytes, or the index of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CompiledOperand {
    /// An offset in the send buffer.
    Send(usize),
    /// An offset in the receive buffer.
    Recv(usize),
    /// An offset in the scratch memory.
    Scratch(usize),
    /// The next message of a link.
    Message(u32),
}

impl Default for CompiledOperand {
    fn default() -> Self {
        Self::Scratch(0)
    }
}

/// A step of a compiled plan.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CompiledStep {
    pub(crate) inputs: InlineVec<CompiledOperand>,
    /// The local outputs.
    pub(crate) outputs: InlineVec<CompiledOperand>,
    /// The links on which the result is sent.
    pub(crate) sends: InlineVec<u32>,
    /// Bit `i`: input `i` is the rank's own contribution.
    pub(crate) own: u8,
    /// Whether the step closes the reduction.
    pub(crate) finish: bool,
    /// Elements of every operand.
    pub(crate) count: usize,
    /// Bytes of every operand.
    pub(crate) bytes: usize,
    /// Whether the result is the only input, unchanged.
    pub(crate) copy: bool,
}

/// The steps of one rank, in the order in which they run.
pub(crate) struct CompiledPlan {
    pub(crate) steps: Vec<CompiledStep>,
    /// The number of scratch chunks, each of [`LL_CAPACITY`] bytes.
    pub(crate) scratch: u32,
}

impl CompiledPlan {
    /// Compiles the part of `rank` in `schedule`, with elements of `size` bytes. `scaled` says that
    /// the operation scales contributions. `link` returns the index of the link with a peer on a
    /// channel.
    pub(crate) fn compile(
        schedule: &Schedule,
        geometry: &Geometry,
        size: usize,
        scaled: bool,
        rank: Rank,
        mut link: impl FnMut(Rank, Channel) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let mut steps = Vec::new();
        for (step, count) in dry_run(schedule, geometry, rank) {
            if count > 0 {
                steps.push(compile_step(&step, geometry, (rank, count, size), scaled, &mut link)?);
            }
        }
        drop_unread_scratch(&mut steps);
        Ok(Self { steps, scratch: schedule.scratch })
    }
}

fn compile_step(
    step: &Step,
    geometry: &Geometry,
    (rank, count, size): (Rank, usize, usize),
    scaled: bool,
    link: &mut impl FnMut(Rank, Channel) -> Result<u32, Error>,
) -> Result<CompiledStep, Error> {
    let mut at = |operand: &Operand| {
        Ok::<_, Error>(match *operand {
            Operand::Local(Chunk::Input(i)) => {
                CompiledOperand::Send(geometry.input(rank, i).start * size)
            }
            Operand::Local(Chunk::Output(i)) => {
                CompiledOperand::Recv(geometry.output(rank, i).start * size)
            }
            Operand::Local(Chunk::Scratch(i)) => CompiledOperand::Scratch(i as usize * LL_CAPACITY),
            Operand::Peer { rank: peer, channel } => CompiledOperand::Message(link(peer, channel)?),
        })
    };
    let mut compiled = CompiledStep {
        own: own_mask(&step.inputs),
        finish: step.finish,
        count,
        ..CompiledStep::default()
    };
    compiled.bytes = count * size;
    compiled.copy = step.inputs.len() == 1 && !step.finish && !(scaled && compiled.own != 0);
    for input in &step.inputs {
        compiled.inputs.push(at(input)?);
    }
    for output in &step.outputs {
        match at(output)? {
            CompiledOperand::Message(index) => compiled.sends.push(index),
            local => compiled.outputs.push(local),
        }
    }
    Ok(compiled)
}

/// Removes scratch outputs that no step reads. They exist only to be lent, and LL messages are
/// copies.
fn drop_unread_scratch(steps: &mut [CompiledStep]) {
    let read: HashSet<CompiledOperand> =
        steps.iter().flat_map(|compiled| compiled.inputs.iter().copied()).collect();
    for compiled in steps {
        while let Some(i) = compiled
            .outputs
            .iter()
            .position(|at| matches!(at, CompiledOperand::Scratch(_)) && !read.contains(at))
        {
            compiled.outputs.remove(i);
        }
    }
}

/// Executes the steps of all ranks in a fixed fair order without memory. Returns the steps of
/// `rank` in the order in which they fired, each with its length in elements. The schedule is
/// proved, so this ends.
fn dry_run(schedule: &Schedule, geometry: &Geometry, rank: Rank) -> Vec<(Step, usize)> {
    let mut run = DryRun {
        schedule,
        geometry,
        next: (0..schedule.nranks).map(|r| vec![0; schedule.lanes(r) as usize]).collect(),
        messages: HashMap::new(),
        scratch: HashMap::new(),
    };
    let mut fired = Vec::new();
    loop {
        let mut progress = false;
        for r in 0..schedule.nranks {
            for lane in 0..schedule.lanes(r) {
                if let Some(step) = run.fire(r, lane) {
                    progress = true;
                    if r == rank {
                        fired.push(step);
                    }
                }
            }
        }
        if !progress {
            return fired;
        }
    }
}

/// An execution of all ranks without memory: messages and scratch chunks are lengths alone.
struct DryRun<'a> {
    schedule: &'a Schedule,
    geometry: &'a Geometry,
    /// The next step, by rank and lane.
    next: Vec<Vec<u32>>,
    /// The lengths of the messages under way, by source, destination and channel.
    messages: HashMap<(Rank, Rank, Channel), VecDeque<usize>>,
    /// The length of the content of each scratch chunk.
    scratch: HashMap<(Rank, u32), usize>,
}

impl DryRun<'_> {
    /// Executes the next step of a lane, if it can; returns it with its length in elements.
    fn fire(&mut self, rank: Rank, lane: u32) -> Option<(Step, usize)> {
        let index = self.next[rank as usize][lane as usize];
        if index == self.schedule.steps(rank, lane) {
            return None;
        }
        let step = self.schedule.step(rank, lane, index);
        let ready = step.after.iter().all(|a| self.next[rank as usize][a.lane as usize] > a.step)
            && step.inputs.iter().all(|i| self.len(rank, i).is_some())
            && step.outputs.iter().all(|o| self.has_credit(rank, o));
        if !ready {
            return None;
        }
        let count = step.inputs.iter().find_map(|i| self.len(rank, i)).unwrap_or(0);
        for input in &step.inputs {
            if let Operand::Peer { rank: from, channel } = *input {
                self.messages.get_mut(&(from, rank, channel)).and_then(VecDeque::pop_front);
            }
        }
        for output in &step.outputs {
            match *output {
                Operand::Peer { rank: to, channel } => {
                    self.messages.entry((rank, to, channel)).or_default().push_back(count);
                }
                Operand::Local(Chunk::Scratch(i)) => {
                    self.scratch.insert((rank, i), count);
                }
                Operand::Local(_) => {}
            }
        }
        self.next[rank as usize][lane as usize] += 1;
        Some((step, count))
    }

    /// The length of an input. None while its message is missing.
    fn len(&self, rank: Rank, input: &Operand) -> Option<usize> {
        match *input {
            Operand::Peer { rank: from, channel } => {
                self.messages.get(&(from, rank, channel))?.front().copied()
            }
            Operand::Local(Chunk::Scratch(i)) => self.scratch.get(&(rank, i)).copied(),
            Operand::Local(chunk) => self.geometry.buffer_extent(rank, chunk).map(|e| e.len),
        }
    }

    /// Whether the link of an output, if it has one, has a free slot.
    fn has_credit(&self, rank: Rank, output: &Operand) -> bool {
        let Operand::Peer { rank: to, channel } = *output else { return true };
        let under_way = self.messages.get(&(rank, to, channel)).map_or(0, VecDeque::len);
        under_way < LlSender::CREDITS as usize
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::collective::all;
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::call::{Extents, Task};

    fn compiled_plans(schedule: &Schedule, count: usize) -> Vec<CompiledPlan> {
        let task = Task {
            collective: schedule.collective,
            extents: Extents::Even(count),
            dtype: DType::Int32,
            reduction: RedOp::Sum.into(),
            barrier: false,
        };
        let geometry = Geometry::new(schedule, &task, LL_CAPACITY);
        assert!(geometry.fits_ll(schedule, 4));
        let compile = |rank| {
            // Each link has one number, the same on both of its ranks.
            let link = |peer, channel| Ok(u32::from(channel) * schedule.nranks + peer);
            CompiledPlan::compile(schedule, &geometry, 4, false, rank, link)
                .expect("a compiled plan")
        };
        (0..schedule.nranks).map(compile).collect()
    }

    fn schedules() -> impl Iterator<Item = Schedule> {
        all().flat_map(move |g| (1..10).map(move |n| g.schedule(g.collective_with_root(0), n)))
    }

    #[test]
    fn a_compiled_plan_has_the_messages_of_its_schedule() {
        for schedule in schedules() {
            let plans = compiled_plans(&schedule, 16 * schedule.parts as usize);
            for (rank, plan) in (0..).zip(&plans) {
                let steps: Vec<Step> =
                    (0..schedule.lanes(rank)).flat_map(|l| schedule.lane(rank, l)).collect();
                let peers = |operands: &[Operand]| {
                    operands.iter().filter(|o| matches!(o, Operand::Peer { .. })).count()
                };
                let received = |compiled: &CompiledStep| {
                    compiled
                        .inputs
                        .iter()
                        .filter(|a| matches!(a, CompiledOperand::Message(_)))
                        .count()
                };
                let sent: usize = plan.steps.iter().map(|compiled| compiled.sends.len()).sum();
                assert_eq!(plan.steps.len(), steps.len(), "{schedule:?}");
                assert_eq!(sent, steps.iter().map(|s| peers(&s.outputs)).sum::<usize>());
                let all_received: usize = plan.steps.iter().map(received).sum();
                assert_eq!(all_received, steps.iter().map(|s| peers(&s.inputs)).sum::<usize>());
            }
        }
    }

    #[test]
    fn messages_without_elements_are_dropped_on_both_ends() {
        for schedule in schedules() {
            // With one element, at most one part of each block is not empty.
            let plans = compiled_plans(&schedule, 1);
            let mut sent = HashMap::new();
            for (rank, plan) in (0..).zip(&plans) {
                for compiled in &plan.steps {
                    assert_eq!((compiled.count, compiled.bytes), (1, 4));
                    for &link in &compiled.sends {
                        let (channel, peer) = (link / schedule.nranks, link % schedule.nranks);
                        *sent.entry((channel, rank, peer)).or_insert(0) += 1;
                    }
                    for at in &compiled.inputs {
                        if let CompiledOperand::Message(link) = *at {
                            let (channel, peer) = (link / schedule.nranks, link % schedule.nranks);
                            *sent.entry((channel, peer, rank)).or_insert(0) -= 1;
                        }
                    }
                }
            }
            assert!(sent.values().all(|n| *n == 0), "{schedule:?}: {sent:?}");
        }
    }
}
