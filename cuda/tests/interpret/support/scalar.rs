//! The scalar evaluation of a schedule: `semantics::evaluate_step` on whole chunks, one step after
//! the other, over links without limits. Elements are independent of each other, so the result does
//! not depend on tiles; the tests show that the device agrees.

use super::operation::{OnRank, Operation};
use maypole_algorithms::semantics::evaluate_step;
use maypole_algorithms::{Chunk, Operand, Rank, Schedule, Step};
use maypole_cuda::encode::ChunkExtent;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// The positions of `chunks` chunks in a send or receive buffer, with `parts` chunks per block of
/// `count` elements.
pub(crate) fn extents(chunks: u32, parts: u32, count: u64) -> Vec<ChunkExtent> {
    let part = count.div_ceil(u64::from(parts));
    let extent = |chunk: u32| {
        let (block, i) = (u64::from(chunk / parts), u64::from(chunk % parts));
        let start = (i * part).min(count);
        ChunkExtent { offset: block * count + start, elements: part.min(count - start) }
    };
    (0..chunks).map(extent).collect()
}

/// The receive buffers of all ranks after `schedule`, when `inputs` are their send buffers.
pub(crate) fn evaluate(
    schedule: &Schedule,
    operation: Operation,
    count: u64,
    inputs: &[Vec<u64>],
) -> Vec<Vec<u64>> {
    let outputs = extents(schedule.output_chunks(), schedule.parts, count);
    let elements = outputs.iter().map(|e| e.elements).sum::<u64>() as usize;
    let ranks = 0..schedule.nranks;
    let mut run = Run {
        inputs: extents(schedule.input_chunks(), schedule.parts, count),
        outputs,
        operation,
        sent: inputs,
        received: vec![vec![0; elements]; ranks.len()],
        scratch: HashMap::new(),
        links: HashMap::new(),
        done: ranks.clone().map(|rank| vec![0; schedule.lanes(rank) as usize]).collect(),
        nranks: schedule.nranks,
    };
    loop {
        let (mut fired, mut through) = (false, true);
        for rank in ranks.clone() {
            for lane in 0..schedule.lanes(rank) {
                while run.done[rank as usize][lane as usize] < schedule.steps(rank, lane) {
                    let index = run.done[rank as usize][lane as usize];
                    if !run.fire(rank, &schedule.step(rank, lane, index)) {
                        through = false;
                        break;
                    }
                    run.done[rank as usize][lane as usize] += 1;
                    fired = true;
                }
            }
        }
        if through {
            assert!(run.links.values().all(VecDeque::is_empty), "a message is left over");
            return run.received;
        }
        assert!(fired, "{schedule:?} is stuck");
    }
}

struct Run<'a> {
    inputs: Vec<ChunkExtent>,
    outputs: Vec<ChunkExtent>,
    operation: Operation,
    sent: &'a [Vec<u64>],
    received: Vec<Vec<u64>>,
    scratch: HashMap<(Rank, u32), Vec<u64>>,
    links: HashMap<(Rank, Rank, u16), VecDeque<Vec<u64>>>,
    done: Vec<Vec<u32>>,
    nranks: u32,
}

impl Run<'_> {
    /// Runs the step; false if it cannot run yet.
    fn fire(&mut self, rank: Rank, step: &Step) -> bool {
        let done = &self.done[rank as usize];
        let arrived = |operand: &Operand| match *operand {
            Operand::Local(_) => true,
            Operand::Peer { rank: from, channel } => {
                self.links.get(&(from, rank, channel)).is_some_and(|queue| !queue.is_empty())
            }
        };
        if !step.after.iter().all(|after| done[after.lane as usize] > after.step)
            || !step.inputs.iter().all(arrived)
        {
            return false;
        }
        let parameter = self.operation.parameter(rank, self.nranks);
        let mut algebra = OnRank { operation: self.operation, parameter };
        let me = rank as usize;
        let value = evaluate_step(&mut algebra, step, |operand| match operand {
            Operand::Local(Chunk::Input(i)) => {
                self.sent[me][range(self.inputs[i as usize])].to_vec()
            }
            Operand::Local(Chunk::Output(i)) => {
                self.received[me][range(self.outputs[i as usize])].to_vec()
            }
            Operand::Local(Chunk::Scratch(i)) => self.scratch[&(rank, i)].clone(),
            Operand::Peer { rank: from, channel } => {
                let queue = self.links.get_mut(&(from, rank, channel));
                queue.and_then(VecDeque::pop_front).expect("the message has arrived")
            }
        });
        for operand in &step.outputs {
            match *operand {
                Operand::Local(Chunk::Input(_)) => panic!("inputs are read only"),
                Operand::Local(Chunk::Output(i)) => {
                    self.received[me][range(self.outputs[i as usize])].copy_from_slice(&value);
                }
                Operand::Local(Chunk::Scratch(i)) => {
                    self.scratch.insert((rank, i), value.clone());
                }
                Operand::Peer { rank: to, channel } => {
                    self.links.entry((rank, to, channel)).or_default().push_back(value.clone());
                }
            }
        }
        true
    }
}

fn range(extent: ChunkExtent) -> Range<usize> {
    extent.offset as usize..(extent.offset + extent.elements) as usize
}
