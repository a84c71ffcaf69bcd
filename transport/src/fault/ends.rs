//! The ends of a link on which failures are injected.

use super::FaultInjector;
use super::gate::{DelayGate, mix};
use super::recipe::{DamagedPart, FaultRecipe};
use crate::Sequence;
use crate::error::LinkError;
use crate::link::{
    HeaderDamage, Lendable, PostedMemory, ReceiveSlots, ReceivedMessage, SendSlots, SlotMut,
};

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
    /// Returns the tag to send instead of `tag`, and what is to be wrong in the header. Damages the
    /// reserved slot if payloads are damaged.
    fn damage(&mut self, len: usize, tag: u32, lent: bool) -> (u32, Option<HeaderDamage>) {
        let random = mix(self.damage_seed ^ self.next);
        let FaultRecipe { corrupt, part, .. } = *self.injector.recipe;
        if !corrupt.happens(random) {
            return (tag, None);
        }
        let random = mix(random);
        let damage = match part {
            DamagedPart::Tag => return (tag ^ 1 << (random % 32), None),
            DamagedPart::Length => HeaderDamage::Length(self.other_length(len, random)),
            // Beyond all credits. A sequence that is among those awaited is a message that never
            // comes, which nobody can tell from a slow peer.
            DamagedPart::Sequence => HeaderDamage::Sequence(self.next ^ 1 << (32 + random % 32)),
            DamagedPart::Kind => HeaderDamage::Kind(random),
            DamagedPart::Acknowledgement => return (tag, None),
            DamagedPart::Payload => {
                let slot = self.slot.filter(|slot| !lent && len > 0 && len <= slot.capacity);
                if let Some(slot) = slot {
                    // SAFETY: the slot is reserved, so this end may write it, and `len` fits.
                    unsafe { *slot.data.add((random >> 8) as usize % len) ^= 1 << (random % 8) };
                }
                return (tag, None);
            }
        };
        (tag, Some(damage))
    }

    /// A length that is not `len`: a little more or less, a multiple, within the slot, or any.
    fn other_length(&self, len: usize, random: u64) -> usize {
        let (choice, random) = (random % 6, (random >> 3) as usize);
        let other = match choice {
            0 => len.saturating_sub(1 << (random % 6)),
            1 => len + (1 << (random % 6)),
            2 => len * (2 + random % 3),
            3 => self.capacity(),
            4 => random % (self.capacity() + 1),
            _ => random >> (random % 32),
        };
        if other == len { len + 8 } else { other }
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

    fn set_cycle(&mut self, messages: u32) {
        self.inner.set_cycle(messages);
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.slot = self.inner.reserve()?.filter(|_| self.credits.passes(self.next));
        Ok(self.slot)
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.slot.is_some(), "send without a reserved slot");
        let (tag, damage) = self.damage(len, tag, false);
        let abort = self.injector.before_send();
        let sequence = match damage {
            None => self.inner.send(len, tag),
            Some(damage) => self.inner.send_damaged(len, tag, damage),
        };
        self.after_send(sequence, abort);
        sequence
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        self.inner.send_damaged(len, tag, damage)
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
        let (tag, damage) = self.damage(len, tag, true);
        let abort = self.injector.before_send();
        let sequence = match damage {
            // Half of the damaged lengths are those of lent memory. A link that sends what is lent
            // reads all of it.
            Some(HeaderDamage::Length(other))
                if self.next.is_multiple_of(2)
                    && (other <= len || self.inner.lendable() != Lendable::ForSending)
                    && self.inner.can_lend(data, other) =>
            {
                // SAFETY: a receiver that sees another length than it expects reads nothing.
                unsafe { self.inner.lend(data, other, tag) }?
            }
            Some(damage) => {
                let slot_len = len.min(self.capacity());
                // The receiver may go on as if the header were right.
                if let Some(slot) = self.slot {
                    // SAFETY: the slot is reserved and has room; the lent memory has `len` bytes.
                    unsafe { slot.data.copy_from_nonoverlapping(data, slot_len) };
                }
                Some(self.inner.send_damaged(slot_len, tag, damage))
            }
            // SAFETY: the caller's promise; a release is only reported after the inner link
            // reported it.
            None => unsafe { self.inner.lend(data, len, tag) }?,
        };
        if let Some(sequence) = sequence {
            self.after_send(sequence, abort);
        }
        Ok(sequence)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn withdraw(&mut self) {
        self.inner.withdraw();
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
    pub(super) injector: FaultInjector,
    /// The seed of the choice which acknowledgements are damaged.
    pub(super) damage_seed: u64,
    pub(super) messages: DelayGate,
    /// Sequence of the next message that is released.
    pub(super) next: Sequence,
}

impl ReceiveSlots for FaultyReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let message = self.inner.receive()?;
        Ok(message.filter(|message| self.messages.passes(message.sequence)))
    }

    fn takes_posts(&self) -> bool {
        self.inner.takes_posts()
    }

    unsafe fn post(&mut self, memory: PostedMemory) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.post(memory) };
    }

    fn withdraw(&mut self) {
        self.inner.withdraw();
    }

    fn acknowledge(&mut self) {
        self.inner.acknowledge();
    }

    fn release(&mut self) {
        let random = mix(self.damage_seed ^ self.next);
        self.next += 1;
        let FaultRecipe { corrupt, part, .. } = *self.injector.recipe;
        if part == DamagedPart::Acknowledgement && corrupt.happens(random) {
            // More than the sender can have sent by now.
            return self.inner.release_damaged(1 << (16 + random % 16));
        }
        self.inner.release();
    }

    fn release_damaged(&mut self, excess: u64) {
        self.inner.release_damaged(excess);
    }
}
