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

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::{After, InlineVec, MAX_FAN};
use maypole_reduce::{FoldKernel, FoldOperands};
use maypole_transport::error::LinkError;
use maypole_transport::link::{Lendable, PostedMemory, Sequence};
use maypole_transport::sync::{Ordering, fence, full_fence};

use crate::call::Extent;
use crate::engine::scratch::ScratchMemory;
use crate::engine::wait::WaitLoop;
use crate::engine::{CallBuffers, length_mismatch, ll_transfer, tag_mismatch, wrong_length};
use crate::error::Error;
use crate::links::{LendThresholds, Links};
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

/// The memory that the messages of a step lend, as addresses.
struct MessageMemory {
    at: StepPosition,
    start: usize,
    end: usize,
}

/// The inputs of a step.
struct StepInputs {
    addresses: InlineVec<usize>,
    /// Whether an input is memory of another process.
    foreign: bool,
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

    /// Fails if a peer from which a release is awaited acknowledges what it never got.
    fn check_acknowledgements(&mut self, lanes: &[LaneState]) -> Result<(), Error> {
        for lent in lanes.iter().filter_map(|lane| lane.lent.front()) {
            let slots = &mut self.links.outgoing[lent.link as usize].slots;
            if let Err(error @ LinkError::Corrupt { .. }) = slots.reserve() {
                return Err(error.into());
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

    /// The inputs of a step, each of `count` elements, or None while a message is missing. For
    /// `expected` see [`LaneSegment::bytes`].
    fn inputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
        count: usize,
        tag: u32,
        expected: Option<usize>,
    ) -> Result<Option<StepInputs>, Error> {
        let mut addresses = InlineVec::new();
        let mut foreign = false;
        for operand in &step.inputs {
            let address = match *operand {
                BoundOperand::Link(link) => {
                    let Some(message) = self.links.incoming[link as usize].slots.receive()? else {
                        return Ok(None);
                    };
                    if message.tag != tag || message.len != count * self.size {
                        let peer = self.links.peer(link);
                        return Err(match expected {
                            Some(bytes) => length_mismatch(peer, bytes, Some(message.len)),
                            None if message.tag != tag => tag_mismatch(peer, tag, message.tag),
                            None => wrong_length(peer),
                        });
                    }
                    foreign |= message.in_other_process;
                    message.data as usize
                }
                _ => self.local(*operand, tile),
            };
            addresses.push(address);
        }
        Ok(Some(StepInputs { addresses, foreign }))
    }

    /// Posts the memory of the first local output to the link of a step that only copies a message,
    /// if it could fire now with that message.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn post(
        &mut self,
        step: &BoundStep,
        tile: u64,
        count: usize,
        tag: u32,
        lane: &LaneState,
    ) -> Result<(), Error> {
        let [BoundOperand::Link(link)] = *step.inputs else { return Ok(()) };
        let bytes = count * self.size;
        if step.finish || bytes == 0 || !self.links.incoming[link as usize].slots.takes_posts() {
            return Ok(());
        }
        let outputs = self.local_outputs(step, tile);
        let Some(&(address, _)) = outputs.first() else { return Ok(()) };
        if lane.lends_any(&outputs, bytes) || self.slots(step, address, bytes)?.is_none() {
            return Ok(());
        }
        let memory = PostedMemory { data: address as *mut u8, len: bytes, tag };
        // SAFETY: the step could fire, so nothing else uses the memory that it writes. The caller
        // keeps it valid until the step has fired and released the message, or until
        // `Links::withdraw`.
        unsafe { self.links.incoming[link as usize].slots.post(memory) };
        Ok(())
    }

    /// Fails if a message in the memory of another process may have changed while it was read. That
    /// process has then failed, and has aborted this rank before.
    #[cold]
    fn check_still_lent(&mut self, step: &BoundStep) -> Result<(), Error> {
        // The messages were read before this check.
        fence(Ordering::Acquire);
        for operand in &step.inputs {
            if let BoundOperand::Link(link) = *operand {
                self.links.incoming[link as usize].slots.receive()?;
            }
        }
        Ok(())
    }

    /// The address of a local operand in `tile`.
    fn local(&mut self, operand: BoundOperand, tile: u64) -> usize {
        let bytes = |base: usize, e: Extent| base + e.start * self.size;
        let elements = self.program.tile;
        match operand {
            BoundOperand::Send(e) => bytes(self.buffers.send as usize, e.slice(elements, tile)),
            BoundOperand::Recv(e) => bytes(self.buffers.recv as usize, e.slice(elements, tile)),
            BoundOperand::Scratch(i) => self.scratch.chunk(i) as usize,
            BoundOperand::Link(_) => unreachable!("a link has no local memory"),
        }
    }

    /// The address of each local output, and whether this call does not read it again.
    fn local_outputs(&mut self, step: &BoundStep, tile: u64) -> InlineVec<(usize, bool)> {
        let mut outputs = InlineVec::new();
        for (i, operand) in step.outputs.iter().enumerate() {
            if matches!(operand, BoundOperand::Link(_)) {
                continue;
            }
            outputs.push((self.local(*operand, tile), step.last >> i & 1 != 0));
        }
        outputs
    }

    /// Whether to lend the memory of `operand`, rather than to copy it, on a link that can lend
    /// `lends`. Links between threads lend whatever they can.
    fn is_worth_lending(&self, step: &BoundStep, operand: BoundOperand, lends: Lendable) -> bool {
        let (extent, distinct) = match (lends, operand) {
            (Lendable::Anything, _) => return true,
            (Lendable::Segments, BoundOperand::Send(extent)) => {
                (extent, self.buffers.send != self.buffers.recv.cast_const())
            }
            (Lendable::Segments, BoundOperand::Recv(extent)) => (extent, false),
            (Lendable::ForSending, BoundOperand::Send(extent) | BoundOperand::Recv(extent)) => {
                return extent.len * self.size >= self.links.lend_thresholds.sent;
            }
            _ => return false,
        };
        let LendThresholds { general, rewritten, .. } = self.links.lend_thresholds;
        let threshold = if step.overwritten && !distinct { rewritten } else { general };
        extent.len * self.size >= threshold
    }

    /// The address of the slot for each message of a step, 0 where the link lends `memory`. None
    /// while a link has no credit.
    fn slots(
        &mut self,
        step: &BoundStep,
        memory: usize,
        bytes: usize,
    ) -> Result<Option<InlineVec<usize>>, Error> {
        let lendable = step.lendable(self.scaled);
        let mut slots = InlineVec::new();
        for operand in &step.outputs {
            let BoundOperand::Link(link) = *operand else { continue };
            let outgoing = &mut self.links.outgoing[link as usize].slots;
            let Some(slot) = outgoing.reserve()? else { return Ok(None) };
            let kind = outgoing.lendable();
            let lends = lendable.is_some_and(|operand| self.is_worth_lending(step, operand, kind))
                && self.links.outgoing[link as usize].slots.can_lend(memory as *const u8, bytes);
            if !lends && bytes > slot.capacity {
                return Err(Error::internal("a message is longer than a slot of its link"));
            }
            slots.push(if lends { 0 } else { slot.data as usize });
        }
        Ok(Some(slots))
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

    /// Sends the messages of a step that has fired: from their slots, or by lending `memory` where
    /// the slot is 0.
    fn send(
        &mut self,
        step: &BoundStep,
        tag: u32,
        slots: &InlineVec<usize>,
        memory: MessageMemory,
        lent: &mut VecDeque<LentMessage>,
    ) -> Result<(), Error> {
        let MessageMemory { at, start, end } = memory;
        let bytes = end - start;
        let links = step.outputs.iter().filter_map(|operand| match *operand {
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
            // This fails if the communicator was aborted after the credit was reserved.
            // This lane does not write the lent memory, because `fire` looks at `lent`; other
            // lanes do not, because the schedule is proved; the caller does not, because `run`
            // returns only when nothing is lent. After an error the communicator returns only
            // after `Links::withdraw`, or the results of the peers do not count.
            // SAFETY: for these reasons the memory is not written before the release.
            let sequence = unsafe { outgoing.lend(start as *const u8, bytes, tag)? };
            let sequence = sequence.expect("a credit was reserved for this message");
            let peer = self.links.peer(link);
            lent.push_back(LentMessage { at, link, peer, sequence, start, end });
        }
        Ok(())
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
