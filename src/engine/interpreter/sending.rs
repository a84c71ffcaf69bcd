//! Messages of a step: copied into slots, or lent.

use std::collections::VecDeque;

use maypole_algorithms::schedule::InlineVec;
use maypole_transport::link::Lendable;

use super::{Interpreter, LentMessage, StepPosition};
use crate::error::Error;
use crate::links::LendThresholds;
use crate::plan::bind::{BoundOperand, BoundStep};

/// The memory that the messages of a step lend, as addresses.
pub(super) struct MessageMemory {
    pub(super) at: StepPosition,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Interpreter<'_> {
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
    pub(super) fn slots(
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

    /// Sends the messages of a step that has fired: from their slots, or by lending `memory` where
    /// the slot is 0.
    pub(super) fn send(
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
}
