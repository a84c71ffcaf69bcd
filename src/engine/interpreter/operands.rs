//! Where the operands of a step lie: in local memory, or in messages that have arrived.

use maypole_algorithms::schedule::InlineVec;
use maypole_transport::link::PostedMemory;
use maypole_transport::sync::{Ordering, fence};

use super::{Interpreter, LaneState};
use crate::call::Extent;
use crate::engine::{length_mismatch, tag_mismatch, wrong_length};
use crate::error::Error;
use crate::plan::bind::{BoundOperand, BoundStep};

/// The inputs of a step.
pub(super) struct StepInputs {
    pub(super) addresses: InlineVec<usize>,
    /// Whether an input is memory of another process.
    pub(super) foreign: bool,
}

impl Interpreter<'_> {
    /// The inputs of a step, each of `count` elements, or None while a message is missing. For
    /// `expected` see [`LaneSegment::bytes`](crate::plan::bind::LaneSegment::bytes).
    pub(super) fn inputs(
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
    pub(super) unsafe fn post(
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
    pub(super) fn check_still_lent(&mut self, step: &BoundStep) -> Result<(), Error> {
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
    pub(super) fn local(&mut self, operand: BoundOperand, tile: u64) -> usize {
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
    pub(super) fn local_outputs(
        &mut self,
        step: &BoundStep,
        tile: u64,
    ) -> InlineVec<(usize, bool)> {
        let mut outputs = InlineVec::new();
        for (i, operand) in step.outputs.iter().enumerate() {
            if matches!(operand, BoundOperand::Link(_)) {
                continue;
            }
            outputs.push((self.local(*operand, tile), step.last >> i & 1 != 0));
        }
        outputs
    }
}
