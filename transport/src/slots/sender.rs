//! The sending end of the slot protocol.
//!
//! The messages may use the first part of the ring only, the sender's cycle. Too small a cycle is
//! slow: a store to a line that the receiver has just read, and a load of a line that the sender
//! has just written, wait for the other core's cache. If the ring is as large as a level-2 cache,
//! such lines have moved to the shared cache before they are used again. Too large a cycle pushes
//! the data of the caller out of the caches.

use core::ptr;

use super::{LENT_ADDRESS, LENT_SEGMENT, SlotDescriptor, SlotRingMemory, ring_bytes};
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
    /// Header of the next message.
    index: u32,
    /// Sequence of the last message that is known to be released.
    acked: Sequence,
    /// The receiver acknowledged a message that was not sent.
    is_corrupt: bool,
    /// Bytes of the ring through which messages cycle.
    cycle: usize,
    /// Where the last message in the ring ends, as an offset.
    position: usize,
    /// By header: where its last message began in the ring. None if it took no memory.
    starts: Box<[Option<usize>]>,
    /// Where the next message begins, if a slot is reserved.
    reserved: Option<usize>,
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
        Self {
            ring,
            pair,
            next: 1,
            index: 0,
            acked: 0,
            is_corrupt: false,
            cycle: ring_bytes(ring.slot_bytes, ring.depth),
            position: 0,
            starts: vec![None; ring.depth as usize].into(),
            reserved: None,
        }
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
        if !self.credit(Self::has_header)? {
            return Ok(None);
        }
        let position = ptr::without_provenance(offset);
        let descriptor = SlotDescriptor { place: LENT_SEGMENT, tag, len, position, segment };
        Ok(Some(self.publish(descriptor, None)))
    }

    /// Whether `is_possible` now; an error if waiting for that cannot succeed any more.
    fn credit(&mut self, is_possible: fn(&mut Self) -> bool) -> Result<bool, LinkError> {
        if let Some(error) = self.pair.aborted() {
            return Err(error);
        }
        let possible = is_possible(self);
        if self.is_corrupt {
            let why = "it released a message that was not sent";
            return Err(LinkError::Corrupt { peer: self.pair.peer(), why });
        }
        if possible {
            return Ok(true);
        }
        match self.pair.gone() {
            // A peer that is gone may have released messages before.
            Some(error) => {
                if is_possible(self) {
                    Ok(true)
                } else {
                    Err(error)
                }
            }
            None => Ok(false),
        }
    }

    /// Whether the header of the next message is free.
    fn has_header(&mut self) -> bool {
        let is_free = |sender: &Self| sender.next - sender.acked <= u64::from(sender.ring.depth);
        is_free(self) || {
            self.read_ack();
            is_free(self)
        }
    }

    /// Whether a header and a slot of memory are free; reserves the memory.
    fn has_slot(&mut self) -> bool {
        if !self.has_header() {
            return false;
        }
        self.reserved = self.reserved.or_else(|| self.free_slot()).or_else(|| {
            self.read_ack();
            self.free_slot()
        });
        self.reserved.is_some()
    }

    fn read_ack(&mut self) {
        // Acquire, paired as `slot-ack`: the receiver's reads of a message happen before the
        // next stores to its memory.
        let acked = self.ring.ack().load(Ordering::Acquire);
        if acked < self.next {
            self.acked = acked;
        } else {
            self.is_corrupt = true;
        }
    }

    /// Where the next message can begin, if a slot of memory is free.
    ///
    /// The memory in use reaches from the oldest message to `position`, or, if the sender has begun
    /// anew, from the oldest message upwards and from 0 to `position`. Messages that are no longer
    /// than a slot never use more memory than the cycle has besides one slot, if there are fewer
    /// than the cycle promises. So there is a slot for the next one in both cases, even if the
    /// cycle was larger when they were sent.
    fn free_slot(&self) -> Option<usize> {
        let (slot, position) = (self.ring.slot_bytes, self.position);
        let fits = position + slot <= self.cycle;
        match self.oldest_start() {
            None => Some(if fits { position } else { 0 }),
            Some(oldest) if oldest >= position => (position + slot <= oldest).then_some(position),
            Some(_) if fits => Some(position),
            Some(oldest) => (slot <= oldest).then_some(0),
        }
    }

    /// Where the oldest message that is under way and takes memory begins.
    fn oldest_start(&self) -> Option<usize> {
        let depth = u64::from(self.ring.depth);
        let header = |sequence: Sequence| ((sequence - 1) % depth) as usize;
        (self.acked + 1..self.next).find_map(|sequence| self.starts[header(sequence)])
    }

    /// Publishes a message, which begins at `start` if it lies in the ring.
    fn publish(&mut self, descriptor: SlotDescriptor, start: Option<usize>) -> Sequence {
        self.publish_as(self.next, descriptor, start)
    }

    /// As [`publish`](Self::publish), with `sequence` in the header.
    fn publish_as(
        &mut self,
        sequence: Sequence,
        descriptor: SlotDescriptor,
        start: Option<usize>,
    ) -> Sequence {
        self.starts[self.index as usize] = start;
        let header = self.ring.header(self.index);
        // SAFETY: this end may write the descriptor until it stores the sequence.
        header.descriptor.with_mut(|memory| unsafe { *memory = descriptor });
        // Release, paired as `slot`.
        header.sequence.store(sequence, Ordering::Release);
        self.pair.peer_doorbell().ring();
        let sequence = self.next;
        self.next += 1;
        self.index = self.ring.index_after(self.index);
        self.reserved = None;
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
        if !self.credit(Self::has_slot)? {
            return Ok(None);
        }
        let capacity = self.ring.slot_bytes;
        Ok(self.reserved.map(|start| SlotMut { data: self.ring.address(start), capacity }))
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        let start = self.reserved.expect("send without a reserved slot");
        assert!(len <= self.ring.slot_bytes, "a message longer than its slot");
        self.position = start + len.next_multiple_of(64);
        self.publish(SlotDescriptor::in_ring(start, len, tag), (len > 0).then_some(start))
    }

    fn set_cycle(&mut self, messages: u32) {
        self.cycle = ring_bytes(self.ring.slot_bytes, messages.clamp(1, self.ring.depth));
    }

    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence {
        let start = self.reserved.expect("send without a reserved slot");
        self.position = start + len.next_multiple_of(64);
        let right = SlotDescriptor::in_ring(start, len, tag);
        let (sequence, descriptor) = match damage {
            HeaderDamage::Length(len) => (self.next, SlotDescriptor { len, ..right }),
            HeaderDamage::Sequence(sequence) => (sequence, right),
            HeaderDamage::Kind(number) => {
                let position = ptr::without_provenance(number as usize >> 32);
                let (place, segment) = (LENT_SEGMENT, number | 1);
                (self.next, SlotDescriptor { place, segment, position, ..right })
            }
        };
        self.publish_as(sequence, descriptor, (len > 0).then_some(start))
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
        if !self.credit(Self::has_header)? {
            return Ok(None);
        }
        let (place, position) = (LENT_ADDRESS, data);
        Ok(Some(self.publish(SlotDescriptor { place, tag, len, position, segment: 0 }, None)))
    }

    fn released(&mut self) -> Sequence {
        self.read_ack();
        self.acked
    }
}
