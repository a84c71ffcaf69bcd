//! The ends of a link on which failures are injected.

use super::FaultInjector;
use super::gate::{DelayGate, mix};
use super::recipe::{DamagedPart, FaultRecipe};
use crate::Sequence;
use crate::error::LinkError;
use crate::link::{Lendable, ReceiveSlots, ReceivedMessage, SendSlots, SlotMut};

/// A sending end that wraps another one.
pub(super) struct FaultySender {
    pub(super) inner: Box<dyn SendSlots>,
    pub(super) injector: FaultInjector,
    /// The seed of the choice which messages are damaged.
    pub(super) damage_seed: u64,
    pub(super) credits: DelayGate,
    pub(super) acknowledgements: DelayGate,
    /// Sequence of the next message.
    pub(super) next: Sequence,
    /// The slot of that message, if it is reserved.
    pub(super) slot: Option<SlotMut>,
    /// The last released sequence that the caller has seen.
    pub(super) released: Sequence,
}

// SAFETY: the address in `slot` points to memory of the inner link, which moves with it.
unsafe impl Send for FaultySender {}

impl FaultySender {
    /// Returns the tag to send instead of `tag`. Damages the reserved slot if payloads are damaged.
    fn damage(&mut self, len: usize, tag: u32, lent: bool) -> u32 {
        let random = mix(self.damage_seed ^ self.next);
        let FaultRecipe { corrupt, part, .. } = *self.injector.recipe;
        if !corrupt.happens(random) {
            return tag;
        }
        let random = mix(random);
        match part {
            DamagedPart::Tag => return tag ^ 1 << (random % 32),
            DamagedPart::Payload => {
                let slot = self.slot.filter(|slot| !lent && len > 0 && len <= slot.capacity);
                if let Some(slot) = slot {
                    // SAFETY: the slot is reserved, so this end may write it, and `len` fits.
                    unsafe { *slot.data.add((random >> 8) as usize % len) ^= 1 << (random % 8) };
                }
            }
        }
        tag
    }

    fn after_send(&mut self, sequence: Sequence, abort: bool) {
        debug_assert_eq!(sequence, self.next);
        self.next = sequence + 1;
        self.slot = None;
        if abort {
            (self.injector.abort)();
        }
    }
}

impl SendSlots for FaultySender {
    fn capacity(&self) -> usize {
        self.inner.capacity()
    }

    fn credits(&self) -> u32 {
        self.inner.credits()
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.slot = self.inner.reserve()?.filter(|_| self.credits.passes(self.next));
        Ok(self.slot)
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.slot.is_some(), "send without a reserved slot");
        let tag = self.damage(len, tag, false);
        let abort = self.injector.before_send();
        let sequence = self.inner.send(len, tag);
        self.after_send(sequence, abort);
        sequence
    }

    fn lendable(&self) -> Lendable {
        self.inner.lendable()
    }

    fn can_lend(&mut self, data: *const u8, len: usize) -> bool {
        self.inner.can_lend(data, len)
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        if self.reserve()?.is_none() {
            return Ok(None);
        }
        let tag = self.damage(len, tag, true);
        let abort = self.injector.before_send();
        // SAFETY: the caller's promise; a release is only reported after the inner link reported
        // it.
        let sequence = unsafe { self.inner.lend(data, len, tag) }?;
        if let Some(sequence) = sequence {
            self.after_send(sequence, abort);
        }
        Ok(sequence)
    }

    fn released(&mut self) -> Sequence {
        let released = self.inner.released();
        if released > self.released && self.acknowledgements.passes(self.released + 1) {
            self.released = released;
        }
        self.released
    }
}

/// A receiving end that wraps another one.
pub(super) struct FaultyReceiver {
    pub(super) inner: Box<dyn ReceiveSlots>,
    pub(super) messages: DelayGate,
}

impl ReceiveSlots for FaultyReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.inner.receive()?;
        Ok(message.filter(|message| self.messages.passes(message.sequence)))
    }

    fn release(&mut self) {
        self.inner.release();
    }
}
