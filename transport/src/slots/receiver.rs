//! The receiving end of the slot protocol.

use core::ptr;

use super::{IN_RING, LENT_ADDRESS, LENT_SEGMENT, SlotDescriptor, SlotRingMemory, ring_bytes};
use crate::Sequence;
use crate::error::LinkError;
use crate::link::{ReceiveSlots, ReceivedMessage};
use crate::rank_header::RankPair;
use crate::sync::Ordering;

/// The receiving end. Used by one thread at a time.
pub struct SlotReceiver {
    ring: SlotRingMemory,
    pair: RankPair,
    /// Sequence of the first message that is not released.
    next: Sequence,
    /// Header of that message.
    index: u32,
    received: bool,
}

// SAFETY: `pair` keeps the memory of `ring` alive, and this end's role moves with it.
unsafe impl Send for SlotReceiver {}

const LENT_ACROSS_PROCESSES: &str = "a message was lent across processes";

impl SlotReceiver {
    /// The receiving end of a fresh ring.
    ///
    /// # Safety
    /// The memory of `ring` is as its fields say, zeroed or new, lives as long as `pair`, and has
    /// no other receiving end.
    pub unsafe fn new(ring: SlotRingMemory, pair: RankPair) -> Self {
        debug_assert!(ring.depth > 0 && ring.slots.align_offset(64) == 0);
        Self { ring, pair, next: 1, index: 0, received: false }
    }

    /// The first message that is not released. For a message that lies in a segment, `look_up`
    /// returns the address of the segment's number, an offset and a length, or says what is wrong
    /// with them.
    pub(crate) fn receive_with(
        &mut self,
        look_up: impl FnOnce(u64, usize, usize) -> Result<*const u8, &'static str>,
    ) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.pair.aborted() {
            return Err(error);
        }
        if !self.has_arrived()? {
            let Some(error) = self.pair.gone() else {
                return Ok(None);
            };
            // What a peer sent before it was gone is delivered.
            if !self.has_arrived()? {
                return Err(error);
            }
        }
        self.received = true;
        self.message(look_up).map(Some)
    }

    /// Whether the next message has arrived.
    fn has_arrived(&self) -> Result<bool, LinkError> {
        // Acquire, paired as `slot`.
        let seen = self.ring.header(self.index).sequence.load(Ordering::Acquire);
        if seen == self.next {
            return Ok(true);
        }
        if seen != self.next.saturating_sub(u64::from(self.ring.depth)) {
            return Err(self.corrupt("a message has the wrong sequence"));
        }
        Ok(false)
    }

    fn message(
        &self,
        look_up: impl FnOnce(u64, usize, usize) -> Result<*const u8, &'static str>,
    ) -> Result<ReceivedMessage, LinkError> {
        let header = self.ring.header(self.index);
        // SAFETY: the message has arrived, so the descriptor is constant until it is released. It
        // is read only once, in case a faulty peer writes it all the same.
        let descriptor = header.descriptor.with(|memory| unsafe { ptr::read_volatile(memory) });
        let SlotDescriptor { place, tag, len, position, segment } = descriptor;
        let data = match place {
            IN_RING => self.in_ring(position.addr(), len)?,
            LENT_ADDRESS if self.ring.same_process => position,
            LENT_SEGMENT => {
                look_up(segment, position.addr(), len).map_err(|why| self.corrupt(why))?
            }
            _ => return Err(self.corrupt(LENT_ACROSS_PROCESSES)),
        };
        let in_other_process = place == LENT_SEGMENT;
        Ok(ReceivedMessage { data, len, tag, sequence: self.next, in_other_process })
    }

    /// The address of a message in the ring.
    fn in_ring(&self, offset: usize, len: usize) -> Result<*const u8, LinkError> {
        let SlotRingMemory { slot_bytes, depth, .. } = self.ring;
        if len > slot_bytes {
            return Err(self.corrupt("a message is longer than its slot"));
        }
        // A slot was free from there when the sender reserved it.
        if offset > ring_bytes(slot_bytes, depth) - slot_bytes || !offset.is_multiple_of(64) {
            return Err(self.corrupt("a message lies outside of its ring"));
        }
        Ok(self.ring.address(offset).cast_const())
    }

    #[cold]
    fn corrupt(&self, why: &'static str) -> LinkError {
        LinkError::Corrupt { peer: self.pair.peer(), why }
    }
}

impl ReceiveSlots for SlotReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        self.receive_with(|_, _, _| Err(LENT_ACROSS_PROCESSES))
    }

    fn release(&mut self) {
        self.release_damaged(0);
    }

    fn release_damaged(&mut self, excess: u64) {
        assert!(self.received, "release without a received message");
        // Release, paired as `slot-ack`.
        self.ring.ack().store(self.next + excess, Ordering::Release);
        self.pair.peer_doorbell().ring();
        self.next += 1;
        self.index = self.ring.index_after(self.index);
        self.received = false;
    }
}
