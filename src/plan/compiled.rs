//! Compiling a schedule to a straight line: for messages that fit the line protocol, the steps of a rank in one fixed order,
//! with every length known, and with nothing left of what moves no bytes.
//!
//! The order comes from running the schedule once on run for all ranks: the order in which this rank's steps fire there. All
//! ranks compute the same run, so blocking in that order cannot deadlock: the first unfired step of the common run can
//! always fire. Steps that carry no elements are dropped on both ends alike, since every length follows from the call.

use std::collections::{HashMap, HashSet, VecDeque};

use maypole_algorithms::schedule::{Channel, InlineVec};
use maypole_algorithms::{Chunk, Operand, Rank, Schedule, Step};
use maypole_transport::ll::{LL_CAPACITY, LlSender};

use crate::error::Error;
use crate::geometry::Geometry;
use crate::plan::bind::own_mask;

/// An operand with its place in bytes, or the index of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CompiledOperand {
    /// Bytes into the send buffer.
    Send(usize),
    /// Bytes into the receive buffer.
    Recv(usize),
    /// Bytes into the scratch memory.
    Scratch(usize),
    /// The next message of a link.
    Message(u32),
}

impl Default for CompiledOperand {
    fn default() -> Self {
        Self::Scratch(0)
    }
}

/// One step of the line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CompiledStep {
    pub(crate) inputs: InlineVec<CompiledOperand>,
    /// Local outputs.
    pub(crate) outputs: InlineVec<CompiledOperand>,
    /// Links that the result is sent on.
    pub(crate) sends: InlineVec<u32>,
    /// Bit `i`: input `i` is the rank's own contribution.
    pub(crate) own: u8,
    /// Closes the reduction.
    pub(crate) finish: bool,
    /// Elements of every operand.
    pub(crate) count: usize,
    /// The same in bytes.
    pub(crate) bytes: usize,
    /// Nothing is computed: the result is the only input as it stands.
    pub(crate) copy: bool,
}

/// What one rank does, in order.
pub(crate) struct CompiledPlan {
    pub(crate) ops: Vec<CompiledStep>,
    /// Scratch memory needed, in chunks of [`LL_CAPACITY`] bytes.
    pub(crate) scratch: u32,
}

impl CompiledPlan {
    /// Compiles `rank`'s part of `schedule`. `scaled`: the operation scales contributions. `link` gives the index of the link with
    /// a peer on a channel.
    pub(crate) fn compile(
        schedule: &Schedule,
        geometry: &Geometry,
        size: usize,
        scaled: bool,
        rank: Rank,
        mut link: impl FnMut(Rank, Channel) -> Result<u32, Error>,
    ) -> Result<Self, Error> {
        let mut ops = Vec::new();
        for (step, count) in dry_run(schedule, geometry, rank) {
            if count > 0 {
                ops.push(op(&step, geometry, (rank, count, size), scaled, &mut link)?);
            }
        }
        drop_unread_scratch(&mut ops);
        Ok(Self { ops, scratch: schedule.scratch })
    }
}

fn op(
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
    let mut op = CompiledStep {
        own: own_mask(&step.inputs),
        finish: step.finish,
        count,
        ..CompiledStep::default()
    };
    op.bytes = count * size;
    op.copy = step.inputs.len() == 1 && !step.finish && !(scaled && op.own != 0);
    for input in &step.inputs {
        op.inputs.push(at(input)?);
    }
    for output in &step.outputs {
        match at(output)? {
            CompiledOperand::Message(index) => op.sends.push(index),
            local => op.outputs.push(local),
        }
    }
    Ok(op)
}

/// The lines hold copies: what was put aside only to be lent need not be written.
fn drop_unread_scratch(ops: &mut [CompiledStep]) {
    let read: HashSet<CompiledOperand> =
        ops.iter().flat_map(|op| op.inputs.iter().copied()).collect();
    for op in ops {
        while let Some(i) = op
            .outputs
            .iter()
            .position(|at| matches!(at, CompiledOperand::Scratch(_)) && !read.contains(at))
        {
            op.outputs.remove(i);
        }
    }
}

/// Fires the steps of all ranks in a fixed fair order; returns `rank`'s in the order they fired, each with its length
/// in elements. The schedule is proved, so this ends.
fn dry_run(schedule: &Schedule, geometry: &Geometry, rank: Rank) -> Vec<(Step, usize)> {
    let mut run = DryRun {
        schedule,
        geometry,
        at: (0..schedule.nranks).map(|r| vec![0; schedule.lanes(r) as usize]).collect(),
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

/// A run of all ranks in which only lengths move.
struct DryRun<'a> {
    schedule: &'a Schedule,
    geometry: &'a Geometry,
    /// Next step by rank and lane.
    at: Vec<Vec<u32>>,
    /// Lengths of the messages under way by source, destination and channel.
    messages: HashMap<(Rank, Rank, Channel), VecDeque<usize>>,
    /// Lengths of what scratch chunks hold.
    scratch: HashMap<(Rank, u32), usize>,
}

impl DryRun<'_> {
    fn fire(&mut self, rank: Rank, lane: u32) -> Option<(Step, usize)> {
        let index = self.at[rank as usize][lane as usize];
        if index == self.schedule.steps(rank, lane) {
            return None;
        }
        let step = self.schedule.step(rank, lane, index);
        let ready = step.after.iter().all(|a| self.at[rank as usize][a.lane as usize] > a.step)
            && step.inputs.iter().all(|i| self.len(rank, i).is_some())
            && step.outputs.iter().all(|o| self.credit(rank, o));
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
        self.at[rank as usize][lane as usize] += 1;
        Some((step, count))
    }

    /// The length of an input, or None while its message is missing.
    fn len(&self, rank: Rank, input: &Operand) -> Option<usize> {
        match *input {
            Operand::Peer { rank: from, channel } => {
                self.messages.get(&(from, rank, channel))?.front().copied()
            }
            Operand::Local(Chunk::Scratch(i)) => self.scratch.get(&(rank, i)).copied(),
            Operand::Local(chunk) => self.geometry.of(rank, chunk).map(|e| e.len),
        }
    }

    fn credit(&self, rank: Rank, output: &Operand) -> bool {
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

    fn lines(schedule: &Schedule, count: usize) -> Vec<CompiledPlan> {
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
            // A number that is one for each link, whoever asks.
            let link = |peer, channel| Ok(u32::from(channel) * schedule.nranks + peer);
            CompiledPlan::compile(schedule, &geometry, 4, false, rank, link).expect("a line")
        };
        (0..schedule.nranks).map(compile).collect()
    }

    fn schedules() -> impl Iterator<Item = Schedule> {
        all().flat_map(move |g| (1..10).map(move |n| g.schedule(g.collective_with_root(0), n)))
    }

    #[test]
    fn a_line_has_the_messages_of_its_schedule() {
        for schedule in schedules() {
            let lines = lines(&schedule, 16 * schedule.parts as usize);
            for (rank, line) in (0..).zip(&lines) {
                let steps: Vec<Step> =
                    (0..schedule.lanes(rank)).flat_map(|l| schedule.lane(rank, l)).collect();
                let peers = |operands: &[Operand]| {
                    operands.iter().filter(|o| matches!(o, Operand::Peer { .. })).count()
                };
                let received = |op: &CompiledStep| {
                    op.inputs.iter().filter(|a| matches!(a, CompiledOperand::Message(_))).count()
                };
                let sent: usize = line.ops.iter().map(|op| op.sends.len()).sum();
                assert_eq!(line.ops.len(), steps.len(), "{schedule:?}");
                assert_eq!(sent, steps.iter().map(|s| peers(&s.outputs)).sum::<usize>());
                let all_received: usize = line.ops.iter().map(received).sum();
                assert_eq!(all_received, steps.iter().map(|s| peers(&s.inputs)).sum::<usize>());
            }
        }
    }

    #[test]
    fn messages_without_elements_are_dropped_on_both_ends() {
        for schedule in schedules() {
            // One element: at most one part of each block is not empty.
            let lines = lines(&schedule, 1);
            let mut sent = HashMap::new();
            for (rank, line) in (0..).zip(&lines) {
                for op in &line.ops {
                    assert_eq!((op.count, op.bytes), (1, 4));
                    for &link in &op.sends {
                        let (channel, peer) = (link / schedule.nranks, link % schedule.nranks);
                        *sent.entry((channel, rank, peer)).or_insert(0) += 1;
                    }
                    for at in &op.inputs {
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
