//! The sending end of the slot protocol.

use core::ptr;

use super::{SlotDescriptor, SlotRingMemory};
use crate::Sequence;
use crate::error::LinkError;
use crate::link::{HeaderDamage, Lendable, SendSlots, SlotMut};
use crate::rank_header::RankPair;
use crate::sync::Ordering;

/// The sending end. Used by one thread at a time.
pub struct SlotSender {
    ring: SlotRingMemory,
    pair: RankPair,
    /// Sequence of the next message.
    next: Sequence,
    /// Slot of the next message.
    index: u32,
    /// Sequence of the last message that is known to be released.
    acked: Sequence,
    /// The receiver acknowledged a message that was not sent.
    is_corrupt: bool,
    reserved: bool,
}

// SAFETY: `pair` keeps the memory of `ring` alive, and this end's role moves with it.
unsafe impl Send for SlotSender {}

impl SlotSender {
    /// The sending end of a fresh ring.
    ///
    /// # Safety
    /// The memory of `ring` is as its fields say, zeroed or new, lives as long as `pair`, and has
    /// no other sending end.
    pub unsafe fn new(ring: SlotRingMemory, pair: RankPair) -> Self {
        debug_assert!(ring.depth > 0 && ring.slots.align_offset(64) == 0);
        Self { ring, pair, next: 1, index: 0, acked: 0, is_corrupt: false, reserved: false }
    }

    /// Publishes `len` bytes from byte `offset` of this process's segment number `segment`, which
    /// is not 0, as a message. `None` is back-pressure.
    #[cfg(not(loom))]
    pub(crate) fn lend_segment(
        &mut self,
        segment: u64,
        offset: usize,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        if !self.credit()? {
            return Ok(None);
        }
        let lent = ptr::without_provenance(offset);
        Ok(Some(self.publish(SlotDescriptor { segment, lent, len, tag })))
    }

    /// Whether a message can be sent now; an error if waiting for that cannot succeed any more.
    fn credit(&mut self) -> Result<bool, LinkError> {
        if let Some(error) = self.pair.aborted() {
            return Err(error);
        }
        let credit = self.has_credit();
        if self.is_corrupt {
            let why = "it released a message that was not sent";
            return Err(LinkError::Corrupt { peer: self.pair.peer(), why });
        }
        if credit {
            return Ok(true);
        }
        match self.pair.gone() {
            // A peer that is gone may have released messages before.
            Some(error) => {
                if self.has_credit() {
                    Ok(true)
                } else {
                    Err(error)
                }
            }
            None => Ok(false),
        }
    }

    fn has_credit(&mut self) -> bool {
        if self.next - self.acked > u64::from(self.ring.depth) {
            self.read_ack();
        }
        self.next - self.acked <= u64::from(self.ring.depth)
    }

    fn read_ack(&mut self) {
        // Acquire, paired as `slot-ack`: the receiver's reads of a slot happen before the next
        // stores to it.
        let acked = self.ring.ack().load(Ordering::Acquire);
        if acked < self.next {
            self.acked = acked;
        } else {
            self.is_corrupt = true;
        }
    }

    fn publish(&mut self, descriptor: SlotDescriptor) -> Sequence {
        self.publish_as(self.next, descriptor)
    }

    /// Publishes the next message, whose header says `sequence`.
    fn publish_as(&mut self, sequence: Sequence, descriptor: SlotDescriptor) -> Sequence {
        let header = self.ring.header(self.index);
        // SAFETY: this end may write the slot and its descriptor until it stores the sequence.
        header.descriptor.with_mut(|memory| unsafe { *memory = descriptor });
        // Release, paired as `slot`.
        header.sequence.store(sequence, Ordering::Release);
        self.pair.peer_doorbell().ring();
        let sequence = self.next;
        self.next += 1;
        self.index = self.ring.index_after(self.index);
        self.reserved = false;
        sequence
    }
}

impl SendSlots for SlotSender {
    fn capacity(&self) -> usize {
        self.ring.slot_bytes
    }

    fn credits(&self) -> u32 {
        self.ring.depth
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.reserved = self.credit()?;
        Ok(self
            .reserved
            .then(|| SlotMut { data: self.ring.slot(self.index), capacity: self.ring.slot_bytes }))
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        assert!(len <= self.ring.slot_bytes, "a message longer than its slot");
        self.publish(SlotDescriptor { segment: 0, lent: ptr::null(), len, tag })
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        let right = SlotDescriptor { segment: 0, lent: ptr::null(), len, tag };
        let (sequence, descriptor) = match damage {
            HeaderDamage::Length(len) => (self.next, SlotDescriptor { len, ..right }),
            HeaderDamage::Sequence(sequence) => (sequence, right),
            HeaderDamage::Kind(number) => {
                let lent = ptr::without_provenance(number as usize >> 32);
                (self.next, SlotDescriptor { segment: number | 1, lent, ..right })
            }
        };
        self.publish_as(sequence, descriptor)
    }

    fn lendable(&self) -> Lendable {
        if self.ring.same_process { Lendable::Anything } else { Lendable::Nothing }
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        assert!(self.ring.same_process, "this link cannot lend memory");
        assert!(!data.is_null(), "lent memory has an address");
        if !self.credit()? {
            return Ok(None);
        }
        Ok(Some(self.publish(SlotDescriptor { segment: 0, lent: data, len, tag })))
    }

    fn released(&mut self) -> Sequence {
        self.read_ack();
        self.acked
    }
}
