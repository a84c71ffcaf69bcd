//! The slot protocol: messages of any size through a ring of slots, each released by itself.
//!
//! Slot `i` of the ring has a header, in which the sender publishes what lies in the slot: the message's sequence is
//! stored last, with release. The receiver releases a message by storing its sequence in the link's ack word. The
//! words that each side writes lie on lines of their own.
//!
//! Where the receiver can read the sender's memory, a message may be *lent*: its header then says where it lies, its slot stays
//! empty, and the message still takes the slot's place in the order and in the credits. Between threads it lies at an address of their
//! process; between processes at an offset of a segment, which the link's ends of `shm` look up.

use core::ptr;

use crate::error::LinkError;
use crate::link::{Lendable, ReceiveSlots, ReceivedMessage, SendSlots, Sequence, SlotMut};
use crate::ll::AckWord;
use crate::rank_header::RankPair;
use crate::sync::{AtomicU64, Cell, Ordering};

/// The header of a slot. All zeros is one that never held a message.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SlotHeader {
    /// Of the message in the slot.
    sequence: AtomicU64,
    descriptor: Cell<Descriptor>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Descriptor {
    /// 0, or the segment of the sender's process in which a lent message lies, from the byte on whose number is the address of `lent`.
    segment: u64,
    /// Without a segment: null, or where a lent message lies in the process that both ends share.
    lent: *const u8,
    len: usize,
    tag: u32,
}

// SAFETY: made to be shared: descriptors are accessed as the sequences grant it, which the loom model checks; a lent
// address is followed only in the process that it is of.
unsafe impl Sync for SlotHeader {}
// SAFETY: as above.
unsafe impl Send for SlotHeader {}

impl Default for SlotHeader {
    fn default() -> Self {
        let descriptor = Descriptor { segment: 0, lent: ptr::null(), len: 0, tag: 0 };
        Self { sequence: AtomicU64::new(0), descriptor: Cell::new(descriptor) }
    }
}

/// Where the words of a ring live.
#[derive(Clone, Copy, Debug)]
pub struct SlotRingMemory {
    /// One header per slot.
    pub headers: *const SlotHeader,
    /// The first slot; aligned to 64.
    pub slots: *mut u8,
    /// Bytes of a slot and distance to the next; a multiple of 64.
    pub slot_bytes: usize,
    /// Slots of the ring, at least one.
    pub depth: u32,
    /// Where the receiver acknowledges.
    pub ack: *const AckWord,
    /// Both ends are in one process, so that any memory may be lent.
    pub lends: bool,
}

impl SlotRingMemory {
    fn header(&self, index: u32) -> &SlotHeader {
        debug_assert!(index < self.depth);
        // SAFETY: `SlotSender::new` and `SlotReceiver::new` were promised `depth` headers that live as long as they.
        unsafe { &*self.headers.add(index as usize) }
    }

    fn slot(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.depth);
        self.slots.wrapping_add(index as usize * self.slot_bytes)
    }

    fn ack(&self) -> &AtomicU64 {
        // SAFETY: as in `header`.
        unsafe { &(*self.ack).0 }
    }

    fn after(&self, index: u32) -> u32 {
        if index + 1 == self.depth { 0 } else { index + 1 }
    }
}

/// The sending end.
pub struct SlotSender {
    place: SlotRingMemory,
    pair: RankPair,
    /// Sequence of the next message, and its slot.
    next: Sequence,
    index: u32,
    acked: Sequence,
    reserved: bool,
}

/// The receiving end.
pub struct SlotReceiver {
    place: SlotRingMemory,
    pair: RankPair,
    /// Sequence of the first message that is not released, and its slot.
    next: Sequence,
    index: u32,
    received: bool,
}

/// Finds the memory of a segment's number, an offset and a length; or says what is wrong with them.
pub(crate) trait LookUp:
    FnOnce(u64, usize, usize) -> Result<*const u8, &'static str>
{
}
impl<F: FnOnce(u64, usize, usize) -> Result<*const u8, &'static str>> LookUp for F {}

const ACROSS: &str = "a message was lent across processes";

// SAFETY: the memory of `place` is kept by `pair`, and this end's side of the protocol moves with it.
unsafe impl Send for SlotSender {}
// SAFETY: as above.
unsafe impl Send for SlotReceiver {}

impl SlotSender {
    /// The sending end of a fresh ring.
    ///
    /// # Safety
    /// The memory of `place` is as its fields say, zeroed or new, lives as long as `pair`, and has no other sending end.
    pub unsafe fn new(place: SlotRingMemory, pair: RankPair) -> Self {
        debug_assert!(place.depth > 0 && place.slots.align_offset(64) == 0);
        Self { place, pair, next: 1, index: 0, acked: 0, reserved: false }
    }

    fn has_credit(&mut self) -> bool {
        if self.next - self.acked > u64::from(self.place.depth) {
            // Pairs as `slot-ack`: the receiver's reads of the slot happen before our next stores to it.
            self.acked = self.place.ack().load(Ordering::Acquire);
        }
        self.next - self.acked <= u64::from(self.place.depth)
    }

    fn credit(&mut self) -> Result<bool, LinkError> {
        if let Some(error) = self.pair.aborted() {
            return Err(error);
        }
        if self.has_credit() {
            return Ok(true);
        }
        match self.pair.gone() {
            // What it released before it went counts.
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

    /// Publishes `len` bytes from byte `offset` of this process' segment of that number, which is not 0, as a message. None is
    /// back-pressure.
    #[cfg(not(loom))]
    pub(crate) fn lend_of(
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
        Ok(Some(self.publish(Descriptor { segment, lent, len, tag })))
    }

    fn publish(&mut self, descriptor: Descriptor) -> Sequence {
        let header = self.place.header(self.index);
        // SAFETY: the slot and its descriptor are ours until the sequence is stored.
        header.descriptor.with_mut(|place| unsafe { *place = descriptor });
        // Pairs as `slot`.
        header.sequence.store(self.next, Ordering::Release);
        self.pair.peer_doorbell().ring();
        let sequence = self.next;
        self.next += 1;
        self.index = self.place.after(self.index);
        self.reserved = false;
        sequence
    }
}

impl SendSlots for SlotSender {
    fn capacity(&self) -> usize {
        self.place.slot_bytes
    }

    fn credits(&self) -> u32 {
        self.place.depth
    }

    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        self.reserved = self.credit()?;
        Ok(self.reserved.then(|| SlotMut {
            data: self.place.slot(self.index),
            capacity: self.place.slot_bytes,
        }))
    }

    fn send(&mut self, len: usize, tag: u32) -> Sequence {
        assert!(self.reserved, "send without a reserved slot");
        assert!(len <= self.place.slot_bytes, "a message longer than its slot");
        self.publish(Descriptor { segment: 0, lent: ptr::null(), len, tag })
    }

    fn lendable(&self) -> Lendable {
        if self.place.lends { Lendable::Anything } else { Lendable::Nothing }
    }

    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        assert!(self.place.lends, "this link cannot lend memory");
        assert!(!data.is_null(), "lent memory has an address");
        if !self.credit()? {
            return Ok(None);
        }
        Ok(Some(self.publish(Descriptor { segment: 0, lent: data, len, tag })))
    }

    fn released(&mut self) -> Sequence {
        // Pairs as `slot-ack`.
        self.acked = self.place.ack().load(Ordering::Acquire);
        self.acked
    }
}

impl SlotReceiver {
    /// The receiving end of a fresh ring.
    ///
    /// # Safety
    /// The memory of `place` is as its fields say, zeroed or new, lives as long as `pair`, and has no other receiving end.
    pub unsafe fn new(place: SlotRingMemory, pair: RankPair) -> Self {
        debug_assert!(place.depth > 0 && place.slots.align_offset(64) == 0);
        Self { place, pair, next: 1, index: 0, received: false }
    }

    /// Whether the next message is in its slot.
    fn arrived(&self) -> Result<bool, LinkError> {
        // Pairs as `slot`.
        let seen = self.place.header(self.index).sequence.load(Ordering::Acquire);
        if seen == self.next {
            return Ok(true);
        }
        if seen != self.next.saturating_sub(u64::from(self.place.depth)) {
            return Err(self.corrupt("a slot holds a message of the wrong sequence"));
        }
        Ok(false)
    }

    fn message(&self, look_up: impl LookUp) -> Result<ReceivedMessage, LinkError> {
        let header = self.place.header(self.index);
        // SAFETY: the message has arrived, so the descriptor is constant until we release it; should the peer write it all the same,
        // it is read but once.
        let descriptor = header.descriptor.with(|place| unsafe { ptr::read_volatile(place) });
        let Descriptor { segment, lent, len, tag } = descriptor;
        let in_other_process = segment != 0;
        let data = if in_other_process {
            look_up(segment, lent.addr(), len).map_err(|why| self.corrupt(why))?
        } else if lent.is_null() {
            if len > self.place.slot_bytes {
                return Err(self.corrupt("a message is longer than its slot"));
            }
            self.place.slot(self.index).cast_const()
        } else if self.place.lends {
            lent
        } else {
            return Err(self.corrupt(ACROSS));
        };
        Ok(ReceivedMessage { data, len, tag, sequence: self.next, in_other_process })
    }

    /// The first message that is not released. `look_up` finds what is lent of a segment.
    pub(crate) fn receive_with(
        &mut self,
        look_up: impl LookUp,
    ) -> Result<Option<ReceivedMessage>, LinkError> {
        if let Some(error) = self.pair.aborted() {
            return Err(error);
        }
        if !self.arrived()? {
            let Some(error) = self.pair.gone() else {
                return Ok(None);
            };
            // What it sent before it went is delivered.
            if !self.arrived()? {
                return Err(error);
            }
        }
        self.received = true;
        self.message(look_up).map(Some)
    }

    #[cold]
    fn corrupt(&self, why: &'static str) -> LinkError {
        LinkError::Corrupt { peer: self.pair.peer(), why }
    }
}

impl ReceiveSlots for SlotReceiver {
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        self.receive_with(|_, _, _| Err(ACROSS))
    }

    fn release(&mut self) {
        assert!(self.received, "release without a received message");
        // Pairs as `slot-ack`.
        self.place.ack().store(self.next, Ordering::Release);
        self.pair.peer_doorbell().ring();
        self.next += 1;
        self.index = self.place.after(self.index);
        self.received = false;
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use super::*;
    use crate::rank_header::RankHeader;
    use std::sync::Arc;

    #[repr(C, align(64))]
    pub(crate) struct Memory {
        slots: Cell<[u8; 128]>,
        headers: [SlotHeader; 2],
        ack: AckWord,
        header: RankHeader,
    }
    // SAFETY: the tests use it from one thread.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    /// Both ends of a ring of two slots of 64 bytes, and its memory.
    pub(crate) fn ends(lends: bool) -> (Arc<Memory>, SlotSender, SlotReceiver) {
        let memory = Arc::new(Memory {
            slots: Cell::new([0; 128]),
            headers: Default::default(),
            ack: AckWord::default(),
            header: RankHeader::default(),
        });
        let place = SlotRingMemory {
            headers: memory.headers.as_ptr(),
            slots: memory.slots.with_mut(<*mut _>::cast),
            slot_bytes: 64,
            depth: 2,
            ack: &raw const memory.ack,
            lends,
        };
        // SAFETY: `memory` is as `place` says, kept by the pair, and has these two ends alone.
        unsafe {
            let header = &raw const memory.header;
            let pair = RankPair::new(header, header, 5, memory.clone());
            let (sender, receiver) =
                (SlotSender::new(place, pair.clone()), SlotReceiver::new(place, pair));
            (memory, sender, receiver)
        }
    }

    #[test]
    fn stray_writes_are_told() {
        for (sequence, descriptor) in [
            (9, Descriptor { segment: 0, lent: ptr::null(), len: 1, tag: 0 }),
            (1, Descriptor { segment: 0, lent: ptr::null(), len: 65, tag: 0 }),
            (1, Descriptor { segment: 0, lent: ptr::without_provenance(64), len: 1, tag: 0 }),
            (1, Descriptor { segment: 1, lent: ptr::null(), len: 1, tag: 0 }),
        ] {
            let (memory, _, mut receiver) = ends(false);
            assert!(receiver.receive().unwrap().is_none());
            // SAFETY: nobody else uses the memory.
            memory.headers[0].descriptor.with_mut(|place| unsafe { *place = descriptor });
            memory.headers[0].sequence.store(sequence, Ordering::Release);
            assert!(matches!(receiver.receive(), Err(LinkError::Corrupt { peer: 5, .. })));
        }
    }

    #[test]
    fn a_peer_that_is_gone_still_delivers_what_it_sent() {
        let (memory, mut sender, mut receiver) = ends(false);
        for _ in 0..2 {
            sender.reserve().unwrap().unwrap();
            sender.send(1, 0);
        }
        memory.header.die();
        assert_eq!(sender.reserve().unwrap_err(), LinkError::PeerDied { peer: 5 });
        for sequence in 1..=2 {
            assert_eq!(receiver.receive().unwrap().unwrap().sequence, sequence);
            receiver.release();
        }
        assert_eq!(receiver.receive().unwrap_err(), LinkError::PeerDied { peer: 5 });
        assert!(sender.reserve().unwrap().is_some());
    }

    #[test]
    #[should_panic(expected = "without a reserved slot")]
    fn a_slot_is_reserved_before_it_is_sent() {
        let (_, mut sender, _) = ends(true);
        sender.reserve().unwrap().unwrap();
        sender.send(1, 0);
        sender.send(1, 0);
    }

    #[test]
    #[should_panic(expected = "without a received message")]
    fn a_message_is_received_before_it_is_released() {
        ends(true).2.release();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::rank_header::RankHeader;
    use loom::thread;
    use std::sync::Arc;

    struct Memory<const DEPTH: usize> {
        headers: [SlotHeader; DEPTH],
        /// What lies in the slots, so that loom sees who touches it.
        payload: [Cell<u64>; DEPTH],
        ack: AckWord,
        sender: RankHeader,
        receiver: RankHeader,
    }
    // SAFETY: descriptors hold pointers; who may touch them is what the model checks.
    unsafe impl<const DEPTH: usize> Send for Memory<DEPTH> {}
    // SAFETY: as above.
    unsafe impl<const DEPTH: usize> Sync for Memory<DEPTH> {}

    fn check<const DEPTH: usize>(messages: u64) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let memory = Arc::new(Memory::<DEPTH> {
                headers: [(); DEPTH].map(|()| SlotHeader::default()),
                payload: [(); DEPTH].map(|()| Cell::new(0)),
                ack: AckWord::default(),
                sender: RankHeader::default(),
                receiver: RankHeader::default(),
            });
            // Slots are only names here: their addresses tell which payload is meant.
            let slots = ptr::without_provenance_mut::<u8>(64);
            let slot = move |data: *const u8| data.addr() / 64 - 1;
            let place = SlotRingMemory {
                headers: memory.headers.as_ptr(),
                slots,
                slot_bytes: 64,
                depth: DEPTH as u32,
                ack: &raw const memory.ack,
                lends: false,
            };
            let (mine, theirs) = (&raw const memory.sender, &raw const memory.receiver);
            // SAFETY: `memory` is kept by the pairs and has these two ends alone; slots are never dereferenced.
            let (mut sender, mut receiver) = unsafe {
                (
                    SlotSender::new(place, RankPair::new(mine, theirs, 1, memory.clone())),
                    SlotReceiver::new(place, RankPair::new(theirs, mine, 0, memory.clone())),
                )
            };
            let other = memory.clone();
            let handle = thread::spawn(move || {
                for expected in 1..=messages {
                    let mut message = None;
                    other.receiver.doorbell.wait(0, 0, None, || {
                        message = receiver.receive().unwrap();
                        message.is_some()
                    });
                    let message = message.unwrap();
                    assert_eq!((message.sequence, message.len), (expected, expected as usize));
                    // SAFETY: the message is ours until it is released; loom checks just that.
                    let seen = other.payload[slot(message.data)].with(|data| unsafe { *data });
                    assert_eq!(seen, expected);
                    receiver.release();
                }
            });
            for sequence in 1..=messages {
                let mut free = None;
                memory.sender.doorbell.wait(0, 0, None, || {
                    free = sender.reserve().unwrap();
                    free.is_some()
                });
                let free = slot(free.unwrap().data);
                // SAFETY: the slot is ours until it is sent; loom checks just that.
                memory.payload[free].with_mut(|data| unsafe { *data = sequence });
                assert_eq!(sender.send(sequence as usize, 0), sequence);
            }
            handle.join().unwrap();
        });
    }

    #[test]
    fn loom_one_slot() {
        check::<1>(2);
    }

    #[test]
    fn loom_two_slots_go_round() {
        check::<2>(3);
    }
}
