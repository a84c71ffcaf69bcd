//! The interpreter: runs the steps of a plan over slots and lent memory, tile by tile, with all
//! lanes of the rank on the thread of the caller.
//!
//! The meaning of a step is defined in `maypole_algorithms::schedule` and `semantics`; here it is
//! applied to memory. A step fires when the steps that it depends on are done, its messages have
//! arrived, its links have credit, and no message of its own lane still lends memory that it
//! writes. If only its message is missing, and the step copies it, the memory to which it belongs
//! is posted to the link, which may store it there. A link that can lend the memory of a message
//! gets that memory; another link gets a copy, which the fold writes directly into the slot. This
//! is decided anew for each message, which is sound because the proof holds for every mixture.

mod operands;
mod sending;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::{After, InlineVec, MAX_FAN};
use maypole_reduce::{FoldKernel, FoldOperands};
use maypole_transport::error::LinkError;
use maypole_transport::link::Sequence;
use maypole_transport::sync::full_fence;

use self::operands::StepInputs;
use self::sending::MessageMemory;
use crate::call::Extent;
use crate::engine::scratch::ScratchMemory;
use crate::engine::wait::WaitLoop;
use crate::engine::{CallBuffers, ll_transfer};
use crate::error::Error;
use crate::links::Links;
use crate::plan::bind::{BoundOperand, BoundStep, LaneSegment, RankProgram};

/// The interpreter of a rank's program, with what it needs for one call.
pub(crate) struct Interpreter<'a> {
    pub(crate) program: &'a RankProgram,
    pub(crate) buffers: CallBuffers,
    pub(crate) kernel: FoldKernel,
    /// Bytes per element.
    pub(crate) size: usize,
    /// Whether the kernel scales contributions.
    pub(crate) scaled: bool,
    /// Whether outputs that are not read again are written past the caches.
    pub(crate) non_temporal: bool,
    /// A hash of all calls so far. Ranks whose calls ever differed use different tags, even if
    /// their current calls are equal.
    pub(crate) history: u32,
    pub(crate) links: &'a mut Links,
    pub(crate) scratch: &'a mut ScratchMemory,
}

/// The progress of a lane.
#[derive(Default)]
struct LaneState {
    at: StepPosition,
    /// Messages that lend memory and are not known to be released, oldest first.
    lent: VecDeque<LentMessage>,
}

/// The position of a step in its lane, ordered as the steps fire.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct StepPosition {
    segment: usize,
    tile: u64,
    step: usize,
}

/// A message that lends memory.
struct LentMessage {
    at: StepPosition,
    link: u32,
    peer: Rank,
    sequence: Sequence,
    /// The lent memory, as addresses.
    start: usize,
    end: usize,
}

impl Interpreter<'_> {
    /// Runs the program. After an error the communicator is broken, and the messages that still
    /// lend memory are in [`Links::unreleased`].
    ///
    /// # Safety
    /// The buffers are valid for the extents of the program. Nothing else writes them during the
    /// call, nor, after an error, until [`Links::withdraw`] has returned.
    pub(crate) unsafe fn run(&mut self, wait: WaitLoop<'_>) -> Result<(), Error> {
        self.program.set_cycles(self.links);
        let mut lanes: Vec<LaneState> =
            self.program.lanes.iter().map(|_| LaneState::default()).collect();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.at = self.first(index, StepPosition::default());
        }
        // Also after a panic it must be known what is lent.
        // SAFETY: the caller's promise.
        let run = || unsafe { self.run_lanes(&mut lanes, wait) };
        let result = catch_unwind(AssertUnwindSafe(run));
        let result = result.unwrap_or_else(|payload| Err(Error::panic(&*payload)));
        if result.is_err() {
            let lent = lanes.iter().flat_map(|lane| &lane.lent);
            self.links.unreleased.extend(lent.map(|l| (l.link, l.sequence)));
        }
        result
    }

    /// Runs all lanes to their ends.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn run_lanes(
        &mut self,
        lanes: &mut [LaneState],
        mut wait: WaitLoop<'_>,
    ) -> Result<(), Error> {
        let (endpoint, _reading) = (wait.endpoint(), wait.reading());
        // The lanes that have not ended, in their order.
        let mut open: Vec<usize> = (0..lanes.len()).collect();
        while !open.is_empty() {
            let (mut progress, mut ended) = (false, false);
            for &index in &open {
                // SAFETY: the caller's promise.
                progress |= unsafe { self.fire(lanes, index)? };
                let lane = &mut lanes[index];
                self.collect_released(lane);
                ended |= self.has_ended(index, lane);
            }
            if ended {
                open.retain(|&index| !self.has_ended(index, &lanes[index]));
            }
            if progress || ended {
                wait.reset();
            } else {
                // Nobody waits for this rank to go on.
                self.program.flush(self.links);
                self.check_acknowledgements(lanes)?;
                // Links tell of a peer that died, except while it has lent memory to release.
                let mut lent = lanes.iter().flat_map(|lane| &lane.lent);
                let died = |error: &LinkError| matches!(error, LinkError::PeerDied { .. });
                let gone = || lent.find_map(|message| endpoint.gone(message.peer).filter(died));
                wait.pause(gone, || self.awaited_rank(lanes))?;
            }
        }
        self.program.flush(self.links);
        Ok(())
    }

    /// Fails if the link on which a release is awaited has failed, for example because the peer
    /// acknowledges what it never got. That a peer died is told by the wait.
    fn check_acknowledgements(&mut self, lanes: &[LaneState]) -> Result<(), Error> {
        use LinkError::{Aborted, PeerDied, PeerLeft};
        for lent in lanes.iter().filter_map(|lane| lane.lent.front()) {
            let slots = &mut self.links.outgoing[lent.link as usize].slots;
            match slots.reserve() {
                Ok(_) | Err(Aborted { .. } | PeerDied { .. } | PeerLeft { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether a lane has run all its steps and lends nothing any more.
    fn has_ended(&self, index: usize, lane: &LaneState) -> bool {
        self.segment(index, lane.at).is_none() && lane.lent.is_empty()
    }

    fn segment(&self, lane: usize, at: StepPosition) -> Option<&LaneSegment> {
        self.program.lanes[lane].get(at.segment)
    }

    /// The first step at or after `at`; segments without steps are skipped.
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

    /// A rank for which a lane waits.
    #[cold]
    fn awaited_rank(&mut self, lanes: &[LaneState]) -> Option<Rank> {
        for (index, lane) in lanes.iter().enumerate() {
            let lent = lane.lent.front().map(|l| l.link);
            let Some(segment) = self.program.lanes[index].get(lane.at.segment) else {
                if let Some(link) = lent {
                    return Some(self.links.peer(link));
                }
                continue;
            };
            let step = &segment.steps[lane.at.step];
            if segment.ll {
                let link = step.inputs.iter().chain(&step.outputs).find_map(BoundOperand::link);
                return link.map(|link| self.links.peer(link));
            }
            let before = |a: &After| StepPosition { step: a.step as usize, ..lane.at };
            if !step.after.iter().all(|a| is_done(&lanes[a.lane as usize], before(a))) {
                continue;
            }
            let links = &mut *self.links;
            let mut missing =
                |link: &u32| !matches!(links.incoming[*link as usize].slots.receive(), Ok(Some(_)));
            let input = step.inputs.iter().filter_map(BoundOperand::link).find(&mut missing);
            let mut full =
                |link: &u32| !matches!(links.outgoing[*link as usize].slots.reserve(), Ok(Some(_)));
            let output = || step.outputs.iter().filter_map(BoundOperand::link).find(&mut full);
            if let Some(link) = input.or_else(output).or(lent) {
                return Some(self.links.peer(link));
            }
        }
        None
    }

    /// Fires the next step of lane `index`, if it can; returns whether it did.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn fire(&mut self, lanes: &mut [LaneState], index: usize) -> Result<bool, Error> {
        let at = lanes[index].at;
        let program = self.program;
        let Some(segment) = program.lanes[index].get(at.segment) else { return Ok(false) };
        let (step, tag) = (&segment.steps[at.step], segment.tag ^ self.history);
        if segment.ll {
            // SAFETY: the caller's promise.
            let fired = unsafe { self.fire_ll(step, tag)? };
            if fired {
                lanes[index].at = self.next(index, at);
            }
            return Ok(fired);
        }
        let before = |a: &After| StepPosition { step: a.step as usize, ..at };
        if !step.after.iter().all(|a| is_done(&lanes[a.lane as usize], before(a))) {
            return Ok(false);
        }
        // The length of every operand follows from the plan, whatever the messages say.
        let count = Extent { start: 0, len: step.len }.slice(program.tile, at.tile).len;
        // SAFETY: the caller's promise.
        unsafe { self.post(step, at.tile, count, tag, &lanes[index])? };
        let found = self.inputs(step, at.tile, count, tag, segment.bytes);
        if let (Some(bytes), Err(_) | Ok(None)) = (segment.bytes, &found)
            && let Some(&BoundOperand::Link(link)) = step.inputs.first()
        {
            ll_transfer::check_no_ll_message(self.links, link, bytes)?;
        }
        let Some(StepInputs { addresses: inputs, foreign }) = found? else {
            return Ok(false);
        };
        let outputs = self.local_outputs(step, at.tile);
        self.collect_released(&mut lanes[index]);
        if lanes[index].lends_any(&outputs, count * self.size) {
            return Ok(false);
        }
        // The memory that is lent where a link can lend it.
        let memory = outputs.first().map_or(inputs[0], |&(address, _)| address);
        let Some(slots) = self.slots(step, memory, count * self.size)? else { return Ok(false) };
        // `count` is at most a tile, and at most the rest of the chunk. No two operands overlap,
        // except where the schedule, which is proved free of races, names the same chunk.
        // SAFETY: the inputs and outputs are `count` elements long, in memory of the caller, of
        // scratch, or of messages that are not released yet.
        unsafe { self.fold(step, &inputs, count, &outputs, &slots) };
        if foreign {
            self.check_still_lent(step)?;
        }
        let lane = &mut lanes[index];
        let message = MessageMemory { at, start: memory, end: memory + count * self.size };
        self.send(step, tag, &slots, message, &mut lane.lent)?;
        for operand in &step.inputs {
            if let BoundOperand::Link(link) = *operand {
                self.links.incoming[link as usize].slots.release();
            }
        }
        lane.at = self.next(index, at);
        Ok(true)
    }

    /// Sends or receives a transfer as one LL message, if that is possible now; returns whether it
    /// did.
    ///
    /// # Safety
    /// As for [`run`](Self::run), of whose program this is a step of an LL segment.
    unsafe fn fire_ll(&mut self, step: &BoundStep, tag: u32) -> Result<bool, Error> {
        let links = &mut *self.links;
        match (step.inputs.first(), step.outputs.first()) {
            (Some(&BoundOperand::Send(extent)), Some(&BoundOperand::Link(link))) => {
                // One message carries the whole transfer, also where a tile is shorter.
                let data = (self.buffers.send as usize + extent.start) as *const u8;
                // SAFETY: the caller promised the memory; the length was compared with the
                // capacity when the segment was made.
                let sent = unsafe { ll_transfer::send(links, link, data, extent.len, tag)? };
                if sent {
                    full_fence();
                    ll_transfer::ring(links, link);
                } else {
                    ll_transfer::check_send(links, link)?;
                }
                Ok(sent)
            }
            (Some(&BoundOperand::Link(link)), Some(&BoundOperand::Recv(extent))) => {
                let data = (self.buffers.recv as usize + extent.start) as *mut u8;
                // SAFETY: as above.
                let received = unsafe { ll_transfer::receive(links, link, data, extent.len, tag)? };
                if !received {
                    ll_transfer::check_receive(links, link, extent.len, tag)?;
                }
                Ok(received)
            }
            _ => Err(Error::internal("a transfer by an LL message has other operands")),
        }
    }

    /// Folds the inputs into the outputs and the slots.
    ///
    /// # Safety
    /// All operands hold `count` elements, and overlap only as [`FoldOperands`] allows.
    unsafe fn fold(
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
        // A message in posted memory is where it belongs. The rank's own contribution may be too,
        // but the operation may scale it.
        let only_copies = matches!(*step.inputs, [BoundOperand::Link(_)]) && !step.finish;
        let in_place = |address: usize| only_copies && inputs[0] == address;
        for &(address, last) in outputs.iter().filter(|output| !in_place(output.0)) {
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
        let operands = FoldOperands {
            inputs: &sources[..inputs.len()],
            own: step.own,
            outputs: &targets[..n],
            non_temporal,
            count,
            finish: step.finish,
        };
        // SAFETY: the caller's promise.
        unsafe { self.kernel.run(&operands) };
    }

    /// Forgets the messages of a lane that were released.
    fn collect_released(&mut self, lane: &mut LaneState) {
        let links = &mut *self.links;
        lane.lent.retain(|l| links.outgoing[l.link as usize].slots.released() < l.sequence);
    }
}

impl LaneState {
    /// Whether a message of the lane lends a part of one of these outputs of `bytes` bytes.
    fn lends_any(&self, outputs: &InlineVec<(usize, bool)>, bytes: usize) -> bool {
        let written =
            |l: &LentMessage| outputs.iter().any(|&(p, _)| l.start < p + bytes && p < l.end);
        self.lent.iter().any(written)
    }
}

/// Whether the step at `at` has fired on `lane` and the memory that it lent is released.
fn is_done(lane: &LaneState, at: StepPosition) -> bool {
    lane.at > at && !lane.lent.iter().any(|l| l.at == at)
}
