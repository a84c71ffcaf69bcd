//! The device ring: messages between a kernel on a device and the host, announced by two counters.
//!
//! The sender fills slot `n % depth`, writes the *message header* of message `n` (its length and
//! tag) and stores `filled = n + 1`. The receiver releases the slot when it stores
//! `drained = n + 1`. Both counters start at zero when the ring is made and are never reset, so a
//! later user, such as another launch of a kernel, continues where they stand. There is no
//! doorbell, because a device cannot ring one: a side that waits polls.
//!
//! A kernel's side of the protocol is `LinkEnd` in `cuda/src/launch.rs`. The host's proxy holds the
//! receiving end of one ring and the sending end of another. A device accesses host memory in the
//! order of its release stores, at system scope.

use core::any::Any;
use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::link::{ReceivedMessage, SlotMut};
use crate::sync::{AtomicU64, Cell, Ordering};

/// The addresses of the parts of a device ring, in this process.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRingMemory {
    /// The first slot; aligned to 64.
    pub slots: *mut u8,
    /// Bytes from one slot to the next; a multiple of 64, below 4 GiB.
    pub slot_bytes: usize,
    /// Number of slots, at least one.
    pub depth: u32,
    /// One message header per slot: bytes of the message << 32 | tag.
    pub headers: *const Cell<u64>,
    /// Counter of the messages that the sender has put into slots.
    pub filled: *const AtomicU64,
    /// Counter of the messages that the receiver has released.
    pub drained: *const AtomicU64,
}

impl DeviceRingMemory {
    fn index(&self, number: u64) -> usize {
        (number % u64::from(self.depth)) as usize
    }

    fn slot(&self, number: u64) -> *mut u8 {
        self.slots.wrapping_add(self.index(number) * self.slot_bytes)
    }

    fn header(&self, number: u64) -> &Cell<u64> {
        // SAFETY: the caller of `new` of either end promised `depth` headers that live as long as
        // it.
        unsafe { &*self.headers.add(self.index(number)) }
    }

    fn filled(&self) -> &AtomicU64 {
        // SAFETY: as in `header`.
        unsafe { &*self.filled }
    }

    fn drained(&self) -> &AtomicU64 {
        // SAFETY: as in `header`.
        unsafe { &*self.drained }
    }
}

/// The sending end. Used by one thread at a time.
pub struct DeviceRingSender {
    end: DeviceRingEnd,
    /// The last value of the counter that was read.
    drained: u64,
}

/// The receiving end. Used by one thread at a time.
pub struct DeviceRingReceiver {
    end: DeviceRingEnd,
    /// The last value of the counter that was read.
    filled: u64,
}

struct DeviceRingEnd {
    memory: DeviceRingMemory,
    /// The rank from or to which the messages travel, for errors.
    peer: Rank,
    /// Number of messages that this end has sent or released.
    count: u64,
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `_keep` keeps the memory alive, and this end's role in the protocol moves with it.
unsafe impl Send for DeviceRingEnd {}

impl DeviceRingEnd {
    fn new(memory: DeviceRingMemory, peer: Rank, keep: Arc<dyn Any + Send + Sync>) -> Self {
        debug_assert!(memory.depth > 0 && memory.slots.align_offset(64) == 0);
        Self { memory, peer, count: 0, _keep: keep }
    }

    fn corrupt(&self, why: &'static str) -> LinkError {
        LinkError::Corrupt { peer: self.peer, why }
    }
}

impl DeviceRingSender {
    /// The sending end of a fresh ring of messages from `peer`.
    ///
    /// # Safety
    /// The memory of `memory` is as its fields say and its counters are zero. It lives as long as
    /// `keep`, and has no other sending end.
    pub unsafe fn new(
        memory: DeviceRingMemory,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { end: DeviceRingEnd::new(memory, peer, keep), drained: 0 }
    }

    /// The next free slot; `None` while all slots hold messages that are not released.
    ///
    /// # Errors
    /// The counter has a value that no correct receiver writes.
    pub fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError> {
        let (memory, count) = (&self.end.memory, self.end.count);
        if count.wrapping_sub(self.drained) >= u64::from(memory.depth) {
            // Acquire, paired as `device-drained`: the receiver's reads of a slot happen before the
            // next stores to it.
            self.drained = memory.drained().load(Ordering::Acquire);
        }
        match count.checked_sub(self.drained) {
            Some(held) if held < u64::from(memory.depth) => {
                Ok(Some(SlotMut { data: memory.slot(count), capacity: memory.slot_bytes }))
            }
            Some(held) if held == u64::from(memory.depth) => Ok(None),
            _ => Err(self
                .end
                .corrupt("it released messages of its device ring that were never sent")),
        }
    }

    /// Publishes the first `len` bytes of the reserved slot.
    ///
    /// # Panics
    /// If no slot is free or `len` exceeds its capacity: a bug of the caller.
    pub fn send(&mut self, len: usize, tag: u32) {
        let (memory, count) = (&self.end.memory, self.end.count);
        let held = count.wrapping_sub(self.drained);
        assert!(held < u64::from(memory.depth), "send without a free slot");
        assert!(len <= memory.slot_bytes, "a message longer than its slot");
        // SAFETY: this end may write slot and header until `filled` is stored.
        memory
            .header(count)
            .with_mut(|header| unsafe { *header = (len as u64) << 32 | u64::from(tag) });
        self.end.count += 1;
        // Release, paired as `device-filled`.
        memory.filled().store(self.end.count, Ordering::Release);
    }

    /// Number of messages sent so far.
    pub fn sent(&self) -> u64 {
        self.end.count
    }
}

impl DeviceRingReceiver {
    /// The receiving end of a fresh ring of messages for `peer`.
    ///
    /// # Safety
    /// As for [`DeviceRingSender::new`]; the ring has no other receiving end.
    pub unsafe fn new(
        memory: DeviceRingMemory,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { end: DeviceRingEnd::new(memory, peer, keep), filled: 0 }
    }

    /// The first message that is not released; `None` if it has not arrived. Sequences count from
    /// 1, as on links.
    ///
    /// # Errors
    /// The counter or the header has a value that no correct sender writes.
    pub fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError> {
        let (memory, count) = (&self.end.memory, self.end.count);
        if self.filled == count {
            // Acquire, paired as `device-filled`: header and slot are written.
            self.filled = memory.filled().load(Ordering::Acquire);
        }
        match self.filled.checked_sub(count) {
            Some(0) => return Ok(None),
            Some(held) if held <= u64::from(memory.depth) => {}
            _ => {
                return Err(self
                    .end
                    .corrupt("its device ring counts more messages than it has slots"));
            }
        }
        // SAFETY: the message has arrived, so its header is constant until it is released.
        let header = memory.header(count).with(|header| unsafe { *header });
        let len = (header >> 32) as usize;
        if len > memory.slot_bytes {
            return Err(self
                .end
                .corrupt("its device ring holds a message that is longer than a slot"));
        }
        let data = memory.slot(count).cast_const();
        Ok(Some(ReceivedMessage {
            data,
            len,
            tag: header as u32,
            sequence: count + 1,
            in_other_process: false,
        }))
    }

    /// Releases the slot of the first message.
    ///
    /// # Panics
    /// If no message was received: a bug of the caller.
    pub fn release(&mut self) {
        assert!(self.filled > self.end.count, "release without a received message");
        self.end.count += 1;
        // Release, paired as `device-drained`.
        self.end.memory.drained().store(self.end.count, Ordering::Release);
    }

    /// Number of messages released so far.
    pub fn released(&self) -> u64 {
        self.end.count
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[repr(C, align(64))]
    struct TestRing {
        slots: Cell<[u8; 128]>,
        headers: [Cell<u64>; 2],
        filled: AtomicU64,
        drained: AtomicU64,
    }
    // SAFETY: the tests use it from one thread.
    unsafe impl Send for TestRing {}
    // SAFETY: as above.
    unsafe impl Sync for TestRing {}

    fn ends() -> (Arc<TestRing>, DeviceRingSender, DeviceRingReceiver) {
        let memory = Arc::new(TestRing {
            slots: Cell::new([0; 128]),
            headers: [Cell::new(0), Cell::new(0)],
            filled: AtomicU64::new(0),
            drained: AtomicU64::new(0),
        });
        let addresses = DeviceRingMemory {
            slots: memory.slots.with_mut(<*mut _>::cast),
            slot_bytes: 64,
            depth: 2,
            headers: memory.headers.as_ptr(),
            filled: &raw const memory.filled,
            drained: &raw const memory.drained,
        };
        // SAFETY: the memory is as the fields say, kept alive by the ends, and has only these two.
        unsafe {
            let sender = DeviceRingSender::new(addresses, 5, memory.clone());
            let receiver = DeviceRingReceiver::new(addresses, 5, memory.clone());
            (memory, sender, receiver)
        }
    }

    #[test]
    fn messages_of_any_length_arrive_in_order() {
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
    fn stray_writes_are_reported() {
        let corrupt = |seen: Result<bool, LinkError>| {
            assert!(matches!(seen, Err(LinkError::Corrupt { peer: 5, .. })), "{seen:?}");
        };
        let (memory, _, mut receiver) = ends();
        memory.filled.store(3, Ordering::Release);
        corrupt(receiver.receive().map(|found| found.is_some()));
        let (memory, _, mut receiver) = ends();
        // SAFETY: no other thread uses the memory.
        memory.headers[0].with_mut(|header| unsafe { *header = 65 << 32 });
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
    fn a_full_ring_refuses_to_send() {
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

    struct DeviceRingModel<const DEPTH: usize> {
        headers: [Cell<u64>; DEPTH],
        /// The content of the slots, so that loom sees the accesses to it.
        payload: [Cell<u64>; DEPTH],
        filled: AtomicU64,
        drained: AtomicU64,
    }
    // SAFETY: the model checks who accesses the cells when.
    unsafe impl<const DEPTH: usize> Send for DeviceRingModel<DEPTH> {}
    // SAFETY: as above.
    unsafe impl<const DEPTH: usize> Sync for DeviceRingModel<DEPTH> {}

    /// One end is the kernel, the other is the proxy. The protocol is the same in both directions.
    fn check<const DEPTH: usize>(messages: u64) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let memory = Arc::new(DeviceRingModel::<DEPTH> {
                headers: [(); DEPTH].map(|()| Cell::new(0)),
                payload: [(); DEPTH].map(|()| Cell::new(0)),
                filled: AtomicU64::new(0),
                drained: AtomicU64::new(0),
            });
            // The slots are not accessed: their addresses only say which payload is meant.
            let addresses = DeviceRingMemory {
                slots: ptr::without_provenance_mut::<u8>(64),
                slot_bytes: 64,
                depth: DEPTH as u32,
                headers: memory.headers.as_ptr(),
                filled: &raw const memory.filled,
                drained: &raw const memory.drained,
            };
            let slot = |data: *const u8| data.addr() / 64 - 1;
            // SAFETY: the ends keep the memory alive and are the only two; slots are not accessed.
            let (mut sender, mut receiver) = unsafe {
                (
                    DeviceRingSender::new(addresses, 1, memory.clone()),
                    DeviceRingReceiver::new(addresses, 0, memory.clone()),
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
                    // SAFETY: this end may read the message until it releases it, which loom
                    // checks.
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
                // SAFETY: this end may write the slot until it sends it, which loom checks.
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
