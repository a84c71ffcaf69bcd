//! The walker: runs a bound program over the slots of its links, tile by tile, all lanes of the rank on the caller's thread.
//!
//! What a step means is in `maypole_algorithms::schedule` and `interpret`; here it is done to memory. A step fires when the steps
//! it names are done, its messages are there, its links have credit and no message of its own lane still lends memory that it
//! writes. Links that can lend the memory get the memory itself, others a copy written straight into their slot by the same pass that
//! folds. Which it is is asked anew for every message: the proof holds for every mixture.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::{After, InlineVec, MAX_FAN};
use maypole_transport::link::{Lendable, Sequence};

use crate::call::Extent;
use crate::engine::scratch::ScratchMemory;
use crate::engine::wait::WaitLoop;
use crate::engine::{CallBuffers, mismatch, other_length};
use crate::error::Error;
use crate::links::{LendThresholds, Links};
use crate::plan::bind::{BoundOperand, BoundStep, LaneSegment, RankProgram};
use crate::reduce::{FoldKernel, FoldOperands};

/// What a run needs besides its program.
pub(crate) struct Interpreter<'a> {
    pub(crate) program: &'a RankProgram,
    pub(crate) buffers: CallBuffers,
    pub(crate) kernel: FoldKernel,
    /// Bytes per element.
    pub(crate) size: usize,
    /// The kernel scales contributions.
    pub(crate) scaled: bool,
    /// Outputs that are not read again are written past the caches.
    pub(crate) non_temporal: bool,
    /// A hash of all calls so far: ranks whose calls ever differed meet with different tags, whatever the calls of today.
    pub(crate) history: u32,
    pub(crate) links: &'a mut Links,
    pub(crate) scratch: &'a mut ScratchMemory,
}

/// Where a lane stands.
#[derive(Default)]
struct LaneState {
    at: StepPosition,
    /// Messages that lend memory and are not known to be released, oldest first.
    lent: VecDeque<LentMessage>,
}

/// A step of a lane, in the order in which they fire.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct StepPosition {
    segment: usize,
    tile: u64,
    step: usize,
}

/// The memory of a step's messages where they are lent, as addresses.
struct MessageMemory {
    at: StepPosition,
    start: usize,
    end: usize,
}

/// What a step reads.
struct StepInputs {
    addresses: InlineVec<usize>,
    /// Elements of each.
    count: usize,
    /// Some of it is memory of another process.
    foreign: bool,
}

struct LentMessage {
    at: StepPosition,
    link: u32,
    sequence: Sequence,
    /// The memory, as addresses.
    start: usize,
    end: usize,
}

impl Interpreter<'_> {
    /// Runs the program to its end. On an error the communicator is of no further use, and the messages that still lend memory
    /// are left in [`Links::unreleased`].
    ///
    /// # Safety
    /// The buffers are valid for the program's extents and nobody else writes them during the call, nor, after an error,
    /// until [`Links::withdraw`] has returned.
    pub(crate) unsafe fn run(&mut self, wait: WaitLoop<'_>) -> Result<(), Error> {
        let mut lanes: Vec<LaneState> =
            self.program.lanes.iter().map(|_| LaneState::default()).collect();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.at = self.first(index, StepPosition::default());
        }
        // SAFETY: the caller's promise.
        let result = unsafe { self.run_lanes(&mut lanes, wait) };
        if result.is_err() {
            let lent = lanes.iter().flat_map(|lane| &lane.lent);
            self.links.unreleased.extend(lent.map(|l| (l.link, l.sequence)));
        }
        result
    }

    unsafe fn run_lanes(
        &mut self,
        lanes: &mut [LaneState],
        mut wait: WaitLoop<'_>,
    ) -> Result<(), Error> {
        let _reading = wait.reading();
        // Those that are not over, in their order.
        let mut open: Vec<usize> = (0..lanes.len()).collect();
        while !open.is_empty() {
            let (mut progress, mut over) = (false, false);
            for &index in &open {
                // SAFETY: the caller's promise.
                progress |= unsafe { self.fire(lanes, index)? };
                let lane = &mut lanes[index];
                self.collect_released(lane);
                over |= self.is_over(index, lane);
            }
            if over {
                open.retain(|&index| !self.is_over(index, &lanes[index]));
            }
            if progress || over {
                wait.over();
            } else {
                wait.idle(|| None, || self.whom(lanes))?;
            }
        }
        Ok(())
    }

    fn is_over(&self, index: usize, lane: &LaneState) -> bool {
        self.segment(index, lane.at).is_none() && lane.lent.is_empty()
    }

    fn segment(&self, lane: usize, at: StepPosition) -> Option<&LaneSegment> {
        self.program.lanes[lane].get(at.segment)
    }

    /// The first step from `at` on; segments without steps are passed over.
    fn first(&self, lane: usize, mut at: StepPosition) -> StepPosition {
        while let Some(segment) = self.segment(lane, at)
            && (segment.steps.is_empty() || at.tile == segment.tiles)
        {
            at = StepPosition { segment: at.segment + 1, ..StepPosition::default() };
        }
        at
    }

    /// The step after `at`.
    fn next(&self, lane: usize, mut at: StepPosition) -> StepPosition {
        at.step += 1;
        if self.segment(lane, at).is_some_and(|s| at.step == s.steps.len()) {
            (at.step, at.tile) = (0, at.tile + 1);
        }
        self.first(lane, at)
    }

    /// A rank without which no lane goes on.
    #[cold]
    fn whom(&mut self, lanes: &[LaneState]) -> Option<Rank> {
        for (index, lane) in lanes.iter().enumerate() {
            let lent = lane.lent.front().map(|l| l.link);
            let Some(segment) = self.program.lanes[index].get(lane.at.segment) else {
                if let Some(link) = lent {
                    return Some(self.links.peer(link));
                }
                continue;
            };
            let step = &segment.steps[lane.at.step];
            let before = |a: &After| StepPosition { step: a.step as usize, ..lane.at };
            if !step.after.iter().all(|a| done(&lanes[a.lane as usize], before(a))) {
                continue;
            }
            let links = &mut *self.links;
            let link = |place: &BoundOperand| {
                if let BoundOperand::Link(link) = *place { Some(link) } else { None }
            };
            let mut missing =
                |link: &u32| !matches!(links.incoming[*link as usize].slots.receive(), Ok(Some(_)));
            let input = step.inputs.iter().filter_map(link).find(&mut missing);
            let mut full =
                |link: &u32| !matches!(links.outgoing[*link as usize].slots.reserve(), Ok(Some(_)));
            let output = || step.outputs.iter().filter_map(link).find(&mut full);
            if let Some(link) = input.or_else(output).or(lent) {
                return Some(self.links.peer(link));
            }
        }
        None
    }

    /// Fires the next step of lane `index` if it can.
    unsafe fn fire(&mut self, lanes: &mut [LaneState], index: usize) -> Result<bool, Error> {
        let at = lanes[index].at;
        let program = self.program;
        let Some(segment) = program.lanes[index].get(at.segment) else { return Ok(false) };
        let (step, tag) = (&segment.steps[at.step], segment.tag ^ self.history);
        let before = |a: &After| StepPosition { step: a.step as usize, ..at };
        if !step.after.iter().all(|a| done(&lanes[a.lane as usize], before(a))) {
            return Ok(false);
        }
        let Some(StepInputs { addresses: inputs, count, foreign }) =
            self.inputs(step, at.tile, tag, segment.bytes)?
        else {
            return Ok(false);
        };
        let outputs = self.local_outputs(step, at.tile, count)?;
        self.collect_released(&mut lanes[index]);
        let written = |l: &LentMessage| {
            outputs.iter().any(|&(p, _)| l.start < p + count * self.size && p < l.end)
        };
        if lanes[index].lent.iter().any(written) {
            return Ok(false);
        }
        // What is lent where it can be.
        let memory = outputs.first().map_or(inputs[0], |&(address, _)| address);
        let Some(slots) = self.slots(step, memory, count * self.size)? else { return Ok(false) };
        // SAFETY: the inputs are memory of the caller, of scratch or of messages not yet released, each `count`
        // elements long; the outputs likewise, and no two overlap except where the schedule, which is proved free of
        // races, says the same chunk.
        unsafe { self.pass(step, &inputs, count, &outputs, &slots) };
        if foreign {
            self.still_lent(step)?;
        }
        let lane = &mut lanes[index];
        let loan = MessageMemory { at, start: memory, end: memory + count * self.size };
        self.send(step, tag, &slots, loan, &mut lane.lent)?;
        for place in &step.inputs {
            if let BoundOperand::Link(link) = *place {
                self.links.incoming[link as usize].slots.release();
            }
        }
        lane.at = self.next(index, at);
        Ok(true)
    }

    /// All inputs, or None while a message is missing. `expected`: see [`LaneSegment::bytes`].
    fn inputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
        tag: u32,
        expected: Option<usize>,
    ) -> Result<Option<StepInputs>, Error> {
        let mut addresses = InlineVec::new();
        let (mut count, mut foreign) = (None, false);
        for place in &step.inputs {
            let (address, len) = match *place {
                BoundOperand::Link(link) => {
                    let Some(message) = self.links.incoming[link as usize].slots.receive()? else {
                        return Ok(None);
                    };
                    if message.tag != tag || message.len % self.size != 0 {
                        let peer = self.links.peer(link);
                        return Err(match expected {
                            Some(bytes) => other_length(peer, bytes, message.len),
                            None => mismatch(peer, tag, message.tag),
                        });
                    }
                    foreign |= message.in_other_process;
                    (message.data as usize, message.len / self.size)
                }
                _ => self.local(*place, tile, None),
            };
            addresses.push(address);
            if *count.get_or_insert(len) != len {
                return Err(Error::internal("inputs of one step differ in length"));
            }
        }
        Ok(count.map(|count| StepInputs { addresses, count, foreign }))
    }

    /// An error if a message of the step that lies in another process' memory may have changed while it was read: that process
    /// has failed then, and had aborted this rank before.
    #[cold]
    fn still_lent(&mut self, step: &BoundStep) -> Result<(), Error> {
        // Whatever was read is older than what is looked at now.
        fence(Ordering::Acquire);
        for place in &step.inputs {
            if let BoundOperand::Link(link) = *place {
                self.links.incoming[link as usize].slots.receive()?;
            }
        }
        Ok(())
    }

    /// Address and length in elements of a local place in `tile`; scratch has the length of its content, or `write`.
    fn local(&mut self, place: BoundOperand, tile: u64, write: Option<usize>) -> (usize, usize) {
        let bytes = |base: usize, e: Extent| (base + e.start * self.size, e.len);
        let elements = self.program.tile;
        match place {
            BoundOperand::Send(e) => bytes(self.buffers.send as usize, e.slice(elements, tile)),
            BoundOperand::Recv(e) => bytes(self.buffers.recv as usize, e.slice(elements, tile)),
            BoundOperand::Scratch(i) => {
                let len = self.scratch.len_mut(i);
                *len = write.unwrap_or(*len);
                let len = *len;
                (self.scratch.chunk(i) as usize, len)
            }
            BoundOperand::Link(_) => unreachable!("a link is not local"),
        }
    }

    /// Address and `last` bit of each local output.
    fn local_outputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
        count: usize,
    ) -> Result<InlineVec<(usize, bool)>, Error> {
        let mut outputs = InlineVec::new();
        for (i, place) in step.outputs.iter().enumerate() {
            if matches!(place, BoundOperand::Link(_)) {
                continue;
            }
            let (address, len) = self.local(*place, tile, Some(count));
            if len != count {
                return Err(Error::internal("a result does not fit its chunk"));
            }
            outputs.push((address, step.last >> i & 1 != 0));
        }
        Ok(outputs)
    }

    /// Whether to lend `place` rather than copies of it on a link that `lends` so. Threads lend whatever they can.
    fn is_worth_lending(&self, step: &BoundStep, place: BoundOperand, lends: Lendable) -> bool {
        let (extent, apart) = match (lends, place) {
            (Lendable::Anything, _) => return true,
            (Lendable::Segments, BoundOperand::Send(extent)) => {
                (extent, self.buffers.send != self.buffers.recv.cast_const())
            }
            (Lendable::Segments, BoundOperand::Recv(extent)) => (extent, false),
            _ => return false,
        };
        let LendThresholds { from, written_from } = self.links.lend_thresholds;
        let least = if step.overwritten && !apart { written_from } else { from };
        extent.len * self.size >= least
    }

    /// The slots for the messages that are copied (0 where the link lends `memory`), or None while a link has no credit.
    fn slots(
        &mut self,
        step: &BoundStep,
        memory: usize,
        bytes: usize,
    ) -> Result<Option<InlineVec<usize>>, Error> {
        let lendable = step.lendable(self.scaled);
        let mut slots = InlineVec::new();
        for place in &step.outputs {
            let BoundOperand::Link(link) = *place else { continue };
            let outgoing = &mut self.links.outgoing[link as usize].slots;
            let Some(slot) = outgoing.reserve()? else { return Ok(None) };
            let kind = outgoing.lendable();
            let lends = lendable.is_some_and(|place| self.is_worth_lending(step, place, kind))
                && self.links.outgoing[link as usize].slots.can_lend(memory as *const u8, bytes);
            debug_assert!(lends || bytes <= slot.capacity);
            slots.push(if lends { 0 } else { slot.data as usize });
        }
        Ok(Some(slots))
    }

    unsafe fn pass(
        &self,
        step: &BoundStep,
        inputs: &InlineVec<usize>,
        count: usize,
        outputs: &InlineVec<(usize, bool)>,
        slots: &InlineVec<usize>,
    ) {
        let mut targets = [std::ptr::null_mut::<u8>(); MAX_FAN];
        let mut sources = [std::ptr::null::<u8>(); MAX_FAN];
        let (mut n, mut non_temporal) = (0, 0u8);
        for &(address, last) in outputs {
            targets[n] = address as *mut u8;
            non_temporal |= u8::from(last && self.non_temporal) << n;
            n += 1;
        }
        for &slot in slots.iter().filter(|&&s| s != 0) {
            targets[n] = slot as *mut u8;
            n += 1;
        }
        if n == 0 || count == 0 {
            return;
        }
        for (source, &address) in sources.iter_mut().zip(inputs) {
            *source = address as *const u8;
        }
        let pass = FoldOperands {
            inputs: &sources[..inputs.len()],
            own: step.own,
            outputs: &targets[..n],
            non_temporal,
            count,
            finish: step.finish,
        };
        // SAFETY: the caller's promise.
        unsafe { self.kernel.run(&pass) };
    }

    /// Sends the messages of a step that has fired, as `slots` has it. `loan` is what is lent.
    fn send(
        &mut self,
        step: &BoundStep,
        tag: u32,
        slots: &InlineVec<usize>,
        loan: MessageMemory,
        lent: &mut VecDeque<LentMessage>,
    ) -> Result<(), Error> {
        let MessageMemory { at, start, end } = loan;
        let bytes = end - start;
        let links = step.outputs.iter().filter_map(|place| match *place {
            BoundOperand::Link(link) => Some(link),
            _ => None,
        });
        for (link, &slot) in links.zip(slots) {
            let outgoing = &mut self.links.outgoing[link as usize].slots;
            self.links.slot_traffic.count(bytes, slot == 0);
            if slot != 0 {
                outgoing.send(bytes, tag);
                continue;
            }
            // It fails if the communicator was aborted since the credit was reserved.
            // SAFETY: the memory is not written before the release: by this lane because `fire` looks at `lent`, by others
            // because the schedule is proved, by the caller because `run` returns only when nothing is lent, and after an error
            // the communicator only when `Links::withdraw` has, or the peers' results do not count.
            let sequence = unsafe { outgoing.lend(start as *const u8, bytes, tag)? };
            let sequence = sequence.expect("a credit was reserved for this message");
            lent.push_back(LentMessage { at, link, sequence, start, end });
        }
        Ok(())
    }

    fn collect_released(&mut self, lane: &mut LaneState) {
        let links = &mut *self.links;
        lane.lent.retain(|l| links.outgoing[l.link as usize].slots.released() < l.sequence);
    }
}

/// The step at `at` has fired on `lane`, and what it lent is released.
fn done(lane: &LaneState, at: StepPosition) -> bool {
    lane.at > at && !lane.lent.iter().any(|l| l.at == at)
}
