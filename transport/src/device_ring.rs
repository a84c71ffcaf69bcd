//! The counted ring: messages between a kernel of a device and the host, whose only news are two counters.
//!
//! The sender fills slot `n % depth`, writes the *head* of message `n` (its length and tag) and stores `filled = n + 1`; the receiver
//! is done with the slot when it stores `drained = n + 1`. Both counters count since the ring was made and start at zero, so who comes later,
//! another launch of a kernel say, goes on where they stand. There is no doorbell: a device can ring none, so whoever waits polls.
//!
//! A kernel's side of this is `LinkEnd` in `cuda/src/launch.rs`. The host's proxy has the receiving end of one ring and the sending end
//! of another. What a device does to memory of the host it does in the order of its release stores, at system scope.

use core::any::Any;
use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::link::{ReceivedMessage, SlotMut};
use crate::sync::{AtomicU64, Cell, Ordering};

/// Where the words of a counted ring live, as this process sees them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRingMemory {
    /// First slot; aligned to 64.
    pub slots: *mut u8,
    /// Bytes of a slot and distance to the next; a multiple of 64, below 4 GiB.
    pub slot_bytes: usize,
    /// Slots of the ring, at least one.
    pub depth: u32,
    /// Per slot: bytes of its message << 32 | tag.
    pub heads: *const Cell<u64>,
    /// Counter: messages that the sender has put into slots.
    pub filled: *const AtomicU64,
    /// Counter: messages that the receiver has done with.
    pub drained: *const AtomicU64,
}

impl DeviceRingMemory {
    fn index(&self, number: u64) -> usize {
        (number % u64::from(self.depth)) as usize
    }

    fn slot(&self, number: u64) -> *mut u8 {
        self.slots.wrapping_add(self.index(number) * self.slot_bytes)
    }

    fn head(&self, number: u64) -> &Cell<u64> {
        // SAFETY: `new` of either end was promised `depth` heads that live as long as it.
        unsafe { &*self.heads.add(self.index(number)) }
    }

    fn filled(&self) -> &AtomicU64 {
        // SAFETY: as in `head`.
        unsafe { &*self.filled }
    }

    fn drained(&self) -> &AtomicU64 {
        // SAFETY: as in `head`.
        unsafe { &*self.drained }
    }
}

/// The end that fills slots. Used by one thread at a time.
pub struct DeviceRingSender {
    end: End,
    /// As far as it is known.
    drained: u64,
}

/// The end that drains slots. Used by one thread at a time.
pub struct DeviceRingReceiver {
    end: End,
    /// As far as it is known.
    filled: u64,
}

struct End {
    place: DeviceRingMemory,
    /// The rank at the far end of the way that the messages go, for errors.
    peer: Rank,
    /// Messages that this end has sent or released.
    count: u64,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the memory is kept by `_keep`, and this end's side of the protocol moves with it.
unsafe impl Send for End {}

impl End {
    fn corrupt(&self, why: &'static str) -> LinkError {
        LinkError::Corrupt { peer: self.peer, why }
    }
}

impl DeviceRingSender {
    /// The sending end of a fresh ring, of messages from `peer`.
    ///
    /// # Safety
    /// The memory of `place` is as its fields say, its counters are zero; it lives as long as `keep`, and has no other sending end.
    pub unsafe fn new(
        place: DeviceRingMemory,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        debug_assert!(place.depth > 0 && place.slots.align_offset(64) == 0);
        Self { end: End { place, peer, count: 0, _keep: keep }, drained: 0 }
    }

    /// The next free slot; None as long as all hold messages that were not drained.
    ///
    /// # Errors
    /// A counter that no correct receiver writes.
    pub fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        let (place, count) = (&self.end.place, self.end.count);
        if count.wrapping_sub(self.drained) >= u64::from(place.depth) {
            // Pairs as `counted-drained`: the receiver's reads of the slot happen before our next stores to it.
            self.drained = place.drained().load(Ordering::Acquire);
        }
        match count.checked_sub(self.drained) {
            Some(held) if held < u64::from(place.depth) => {
                Ok(Some(SlotMut { data: place.slot(count), capacity: place.slot_bytes }))
            }
            Some(held) if held == u64::from(place.depth) => Ok(None),
            _ => Err(self.end.corrupt("its ring was drained of messages that it never held")),
        }
    }

    /// Publishes the first `len` bytes of the reserved slot.
    ///
    /// # Panics
    /// If no slot is free or `len` exceeds its capacity: a bug of the caller.
    pub fn send(&mut self, len: usize, tag: u32) {
        let (place, count) = (&self.end.place, self.end.count);
        let held = count.wrapping_sub(self.drained);
        assert!(held < u64::from(place.depth), "send without a free slot");
        assert!(len <= place.slot_bytes, "a message longer than its slot");
        // SAFETY: slot and head are ours until `filled` is stored.
        place.head(count).with_mut(|head| unsafe { *head = (len as u64) << 32 | u64::from(tag) });
        self.end.count += 1;
        // Pairs as `counted-filled`.
        place.filled().store(self.end.count, Ordering::Release);
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        self.end.count
    }
}

impl DeviceRingReceiver {
    /// The receiving end of a fresh ring, of messages for `peer`.
    ///
    /// # Safety
    /// As for [`DeviceRingSender::new`], of receiving ends.
    pub unsafe fn new(
        place: DeviceRingMemory,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        debug_assert!(place.depth > 0 && place.slots.align_offset(64) == 0);
        Self { end: End { place, peer, count: 0, _keep: keep }, filled: 0 }
    }

    /// The first message that is not released; None if it has not arrived. Sequences count from 1, as those of links.
    ///
    /// # Errors
    /// A counter or a head that no correct sender writes.
    pub fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let (place, count) = (&self.end.place, self.end.count);
        if self.filled == count {
            // Pairs as `counted-filled`: head and slot are there.
            self.filled = place.filled().load(Ordering::Acquire);
        }
        match self.filled.checked_sub(count) {
            Some(0) => return Ok(None),
            Some(held) if held <= u64::from(place.depth) => {}
            _ => return Err(self.end.corrupt("its ring counts more messages than it holds")),
        }
        // SAFETY: the message has arrived, so its head is constant until it is released.
        let head = place.head(count).with(|head| unsafe { *head });
        let len = (head >> 32) as usize;
        if len > place.slot_bytes {
            return Err(self.end.corrupt("its ring holds a message that is longer than a slot"));
        }
        let data = place.slot(count).cast_const();
        Ok(Some(ReceivedMessage {
            data,
            len,
            tag: head as u32,
            sequence: count + 1,
            in_other_process: false,
        }))
    }

    /// Gives the slot of the first message back.
    ///
    /// # Panics
    /// If no message was received: a bug of the caller.
    pub fn release(&mut self) {
        assert!(self.filled > self.end.count, "release without a received message");
        self.end.count += 1;
        // Pairs as `counted-drained`.
        self.end.place.drained().store(self.end.count, Ordering::Release);
    }

    /// Messages released so far.
    pub fn released(&self) -> u64 {
        self.end.count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[repr(C, align(64))]
    struct Memory {
        slots: Cell<[u8; 128]>,
        heads: [Cell<u64>; 2],
        filled: AtomicU64,
        drained: AtomicU64,
    }
    // SAFETY: the tests use it from one thread.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    fn ends() -> (Arc<Memory>, DeviceRingSender, DeviceRingReceiver) {
        let memory = Arc::new(Memory {
            slots: Cell::new([0; 128]),
            heads: [Cell::new(0), Cell::new(0)],
            filled: AtomicU64::new(0),
            drained: AtomicU64::new(0),
        });
        let place = DeviceRingMemory {
            slots: memory.slots.with_mut(<*mut _>::cast),
            slot_bytes: 64,
            depth: 2,
            heads: memory.heads.as_ptr(),
            filled: &raw const memory.filled,
            drained: &raw const memory.drained,
        };
        // SAFETY: `memory` is as `place` says, kept by the ends, and has these two alone.
        unsafe {
            let sender = DeviceRingSender::new(place, 5, memory.clone());
            let receiver = DeviceRingReceiver::new(place, 5, memory.clone());
            (memory, sender, receiver)
        }
    }

    #[test]
    fn messages_of_any_length_go_round_in_order() {
        let (_memory, mut sender, mut receiver) = ends();
        for round in 0..5_usize {
            for number in [2 * round, 2 * round + 1] {
                let slot = sender.reserve().unwrap().unwrap();
                // SAFETY: the slot is free and has 64 bytes.
                unsafe { slot.data.write_bytes(number as u8, slot.capacity) };
                sender.send(number * 7 % 65, number as u32 | 1 << 31);
            }
            assert!(sender.reserve().unwrap().is_none());
            for number in [2 * round, 2 * round + 1] {
                let message = receiver.receive().unwrap().unwrap();
                assert_eq!(receiver.receive().unwrap().unwrap().data, message.data);
                let expected = (number as u64 + 1, number * 7 % 65, number as u32 | 1 << 31);
                assert_eq!((message.sequence, message.len, message.tag), expected);
                // SAFETY: the slot holds 64 bytes and is not released.
                assert_eq!(unsafe { message.data.add(63).read() }, number as u8);
                receiver.release();
            }
            assert!(receiver.receive().unwrap().is_none());
        }
        assert_eq!((sender.sent(), receiver.released()), (10, 10));
    }

    #[test]
    fn stray_writes_are_told() {
        let corrupt = |seen: Result<bool, LinkError>| {
            assert!(matches!(seen, Err(LinkError::Corrupt { peer: 5, .. })), "{seen:?}");
        };
        let (memory, _, mut receiver) = ends();
        memory.filled.store(3, Ordering::Release);
        corrupt(receiver.receive().map(|found| found.is_some()));
        let (memory, _, mut receiver) = ends();
        // SAFETY: nobody else uses the memory.
        memory.heads[0].with_mut(|head| unsafe { *head = 65 << 32 });
        memory.filled.store(1, Ordering::Release);
        corrupt(receiver.receive().map(|found| found.is_some()));
        let (memory, mut sender, _) = ends();
        for _ in 0..2 {
            sender.reserve().unwrap().unwrap();
            sender.send(0, 0);
        }
        memory.drained.store(3, Ordering::Release);
        corrupt(sender.reserve().map(|found| found.is_some()));
    }

    #[test]
    #[should_panic(expected = "without a free slot")]
    fn a_full_ring_takes_nothing() {
        let (_memory, mut sender, _receiver) = ends();
        (0..3).for_each(|_| sender.send(0, 0));
    }

    #[test]
    #[should_panic(expected = "without a received message")]
    fn a_message_is_received_before_it_is_released() {
        ends().2.release();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use core::ptr;
    use loom::thread;

    struct Memory<const DEPTH: usize> {
        heads: [Cell<u64>; DEPTH],
        /// What lies in the slots, so that loom sees who touches it.
        payload: [Cell<u64>; DEPTH],
        filled: AtomicU64,
        drained: AtomicU64,
    }
    // SAFETY: who may touch the cells is what the model checks.
    unsafe impl<const DEPTH: usize> Send for Memory<DEPTH> {}
    // SAFETY: as above.
    unsafe impl<const DEPTH: usize> Sync for Memory<DEPTH> {}

    /// One end is the kernel, the other the proxy: the protocol is the same both ways.
    fn check<const DEPTH: usize>(messages: u64) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let memory = Arc::new(Memory::<DEPTH> {
                heads: [(); DEPTH].map(|()| Cell::new(0)),
                payload: [(); DEPTH].map(|()| Cell::new(0)),
                filled: AtomicU64::new(0),
                drained: AtomicU64::new(0),
            });
            // Slots are only names here: their addresses tell which payload is meant.
            let place = DeviceRingMemory {
                slots: ptr::without_provenance_mut::<u8>(64),
                slot_bytes: 64,
                depth: DEPTH as u32,
                heads: memory.heads.as_ptr(),
                filled: &raw const memory.filled,
                drained: &raw const memory.drained,
            };
            let slot = |data: *const u8| data.addr() / 64 - 1;
            // SAFETY: `memory` is kept by the ends and has these two alone; slots are never dereferenced.
            let (mut sender, mut receiver) = unsafe {
                (
                    DeviceRingSender::new(place, 1, memory.clone()),
                    DeviceRingReceiver::new(place, 0, memory.clone()),
                )
            };
            let other = memory.clone();
            let handle = thread::spawn(move || {
                for expected in 1..=messages {
                    let message = loop {
                        match receiver.receive().unwrap() {
                            Some(message) => break message,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!((message.sequence, message.len), (expected, expected as usize));
                    // SAFETY: the message is ours until it is released; loom checks just that.
                    let seen = other.payload[slot(message.data)].with(|data| unsafe { *data });
                    assert_eq!(seen, expected);
                    receiver.release();
                }
            });
            for sequence in 1..=messages {
                let free = loop {
                    match sender.reserve().unwrap() {
                        Some(free) => break slot(free.data),
                        None => thread::yield_now(),
                    }
                };
                // SAFETY: the slot is ours until it is sent; loom checks just that.
                memory.payload[free].with_mut(|data| unsafe { *data = sequence });
                sender.send(sequence as usize, 0);
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
