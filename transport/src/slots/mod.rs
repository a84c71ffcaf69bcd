//! The slot protocol: messages of any size through a ring of slots, each released on its own.
//!
//! Each slot has a header, in which the sender publishes what lies in the slot. The message's
//! sequence is stored last, with release. The receiver releases a message by storing its sequence
//! in the link's ack word. The words that the two sides write lie on different cache lines.
//!
//! If the receiver can read the sender's memory, a message may be *lent*. Its header then says
//! where it lies, and its slot stays empty, but it still takes a place in the order and a credit.
//! Between threads, it lies at an address of their process. Between processes, it lies at an offset
//! of a segment, which the ends in `shm` look up.

mod receiver;
mod sender;

use core::ptr;

use crate::ll::AckWord;
use crate::sync::{AtomicU64, Cell};

pub use self::receiver::SlotReceiver;
pub use self::sender::SlotSender;

/// The header of a slot. All zeros is the header of a slot that never held a message.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SlotHeader {
    /// Sequence of the message in the slot.
    sequence: AtomicU64,
    descriptor: Cell<SlotDescriptor>,
}

/// Where the message of a slot lies, and its length and tag.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct SlotDescriptor {
    /// 0, or the segment of the sender's process in which a lent message lies. The address in
    /// `lent` is then the offset within the segment.
    segment: u64,
    /// Without a segment: null, or the address of a lent message in the process of both ends.
    lent: *const u8,
    len: usize,
    tag: u32,
}

// SAFETY: descriptors are only accessed while the sequences allow it, which the loom model checks.
// A lent address is only followed in the process to which it belongs.
unsafe impl Sync for SlotHeader {}
// SAFETY: as above.
unsafe impl Send for SlotHeader {}

impl Default for SlotHeader {
    fn default() -> Self {
        let descriptor = SlotDescriptor { segment: 0, lent: ptr::null(), len: 0, tag: 0 };
        Self { sequence: AtomicU64::new(0), descriptor: Cell::new(descriptor) }
    }
}

/// The addresses of the parts of a slot ring.
#[derive(Clone, Copy, Debug)]
pub struct SlotRingMemory {
    /// One header per slot.
    pub headers: *const SlotHeader,
    /// The first slot; aligned to 64.
    pub slots: *mut u8,
    /// Bytes from one slot to the next; a multiple of 64.
    pub slot_bytes: usize,
    /// Number of slots, at least one.
    pub depth: u32,
    /// The word in which the receiver acknowledges.
    pub ack: *const AckWord,
    /// Both ends are in one process, so that any memory may be lent.
    pub same_process: bool,
}

impl SlotRingMemory {
    fn header(&self, index: u32) -> &SlotHeader {
        debug_assert!(index < self.depth);
        // SAFETY: the callers of `SlotSender::new` and `SlotReceiver::new` promised `depth` headers
        // that live as long as the ends.
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

    fn index_after(&self, index: u32) -> u32 {
        if index + 1 == self.depth { 0 } else { index + 1 }
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use super::*;
    use crate::LinkError;
    use crate::link::{ReceiveSlots, SendSlots};
    use crate::rank_header::{RankHeader, RankPair};
    use crate::sync::Ordering;
    use std::sync::Arc;

    #[repr(C, align(64))]
    pub(crate) struct TestRing {
        slots: Cell<[u8; 128]>,
        headers: [SlotHeader; 2],
        ack: AckWord,
        header: RankHeader,
    }
    // SAFETY: the tests use it from one thread.
    unsafe impl Send for TestRing {}
    // SAFETY: as above.
    unsafe impl Sync for TestRing {}

    /// A ring of two slots of 64 bytes, and both its ends.
    pub(crate) fn ends(same_process: bool) -> (Arc<TestRing>, SlotSender, SlotReceiver) {
        let memory = Arc::new(TestRing {
            slots: Cell::new([0; 128]),
            headers: Default::default(),
            ack: AckWord::default(),
            header: RankHeader::default(),
        });
        let ring = SlotRingMemory {
            headers: memory.headers.as_ptr(),
            slots: memory.slots.with_mut(<*mut _>::cast),
            slot_bytes: 64,
            depth: 2,
            ack: &raw const memory.ack,
            same_process,
        };
        // SAFETY: the memory is as the fields say, kept alive by the pair, and has only these ends.
        unsafe {
            let header = &raw const memory.header;
            let pair = RankPair::new(header, header, 5, memory.clone());
            let (sender, receiver) =
                (SlotSender::new(ring, pair.clone()), SlotReceiver::new(ring, pair));
            (memory, sender, receiver)
        }
    }

    #[test]
    fn stray_writes_are_reported() {
        for (sequence, descriptor) in [
            (9, SlotDescriptor { segment: 0, lent: ptr::null(), len: 1, tag: 0 }),
            (1, SlotDescriptor { segment: 0, lent: ptr::null(), len: 65, tag: 0 }),
            (1, SlotDescriptor { segment: 0, lent: ptr::without_provenance(64), len: 1, tag: 0 }),
            (1, SlotDescriptor { segment: 1, lent: ptr::null(), len: 1, tag: 0 }),
        ] {
            let (memory, _, mut receiver) = ends(false);
            assert!(receiver.receive().unwrap().is_none());
            // SAFETY: no other thread uses the memory.
            memory.headers[0].descriptor.with_mut(|ring| unsafe { *ring = descriptor });
            memory.headers[0].sequence.store(sequence, Ordering::Release);
            assert!(matches!(receiver.receive(), Err(LinkError::Corrupt { peer: 5, .. })));
        }
    }

    #[test]
    fn a_release_of_what_was_not_sent_is_reported() {
        for acked in [1, 2, u64::MAX] {
            let (memory, mut sender, _) = ends(false);
            assert!(sender.reserve().unwrap().is_some());
            memory.ack.0.store(acked, Ordering::Release);
            assert_eq!(sender.released(), 0);
            assert!(matches!(sender.reserve(), Err(LinkError::Corrupt { peer: 5, .. })));
        }
        // Without a call of `released`, it is noticed when the credits are used up.
        let (memory, mut sender, _) = ends(false);
        memory.ack.0.store(9, Ordering::Release);
        for _ in 0..2 {
            assert!(sender.reserve().unwrap().is_some());
            sender.send(0, 0);
        }
        assert!(matches!(sender.reserve(), Err(LinkError::Corrupt { peer: 5, .. })));
    }

    #[test]
    fn messages_of_a_peer_that_is_gone_are_delivered() {
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
    fn sending_without_a_reserved_slot_panics() {
        let (_, mut sender, _) = ends(true);
        sender.reserve().unwrap().unwrap();
        sender.send(1, 0);
        sender.send(1, 0);
    }

    #[test]
    #[should_panic(expected = "without a received message")]
    fn releasing_without_a_received_message_panics() {
        ends(true).2.release();
    }
}

#[cfg(all(test, loom))]
pub(crate) mod loom_tests {
    use super::*;
    use crate::link::{ReceiveSlots, SendSlots};
    use crate::rank_header::{RankHeader, RankPair};
    use loom::thread;
    use std::sync::Arc;

    struct SlotRingModel<const DEPTH: usize> {
        headers: [SlotHeader; DEPTH],
        /// The content of the slots, so that loom sees the accesses to it.
        payload: [Cell<u64>; DEPTH],
        ack: AckWord,
        sender: RankHeader,
        receiver: RankHeader,
    }
    // SAFETY: descriptors hold pointers; the model checks who accesses them when.
    unsafe impl<const DEPTH: usize> Send for SlotRingModel<DEPTH> {}
    // SAFETY: as above.
    unsafe impl<const DEPTH: usize> Sync for SlotRingModel<DEPTH> {}

    /// An empty ring and its ends. The slots are not accessed: their addresses only say which
    /// payload is meant, see [`slot`].
    fn ends<const DEPTH: usize>() -> (Arc<SlotRingModel<DEPTH>>, SlotSender, SlotReceiver) {
        let memory = Arc::new(SlotRingModel::<DEPTH> {
            headers: [(); DEPTH].map(|()| SlotHeader::default()),
            payload: [(); DEPTH].map(|()| Cell::new(0)),
            ack: AckWord::default(),
            sender: RankHeader::default(),
            receiver: RankHeader::default(),
        });
        let ring = SlotRingMemory {
            headers: memory.headers.as_ptr(),
            slots: ptr::without_provenance_mut::<u8>(64),
            slot_bytes: 64,
            depth: DEPTH as u32,
            ack: &raw const memory.ack,
            same_process: false,
        };
        let (mine, theirs) = (&raw const memory.sender, &raw const memory.receiver);
        // SAFETY: the pairs keep the memory alive; it has only these ends; slots are not accessed.
        unsafe {
            let sender = SlotSender::new(ring, RankPair::new(mine, theirs, 1, memory.clone()));
            let receiver = SlotReceiver::new(ring, RankPair::new(theirs, mine, 0, memory.clone()));
            (memory, sender, receiver)
        }
    }

    /// The number of the slot at an address.
    fn slot(data: *const u8) -> usize {
        data.addr() / 64 - 1
    }

    /// The ends of a ring with one slot, which keep it alive.
    pub(crate) fn one_slot() -> (SlotSender, SlotReceiver) {
        let (_, sender, receiver) = ends::<1>();
        (sender, receiver)
    }

    fn check<const DEPTH: usize>(messages: u64) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let (memory, mut sender, mut receiver) = ends::<DEPTH>();
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
                    // SAFETY: this end may read the message until it releases it, which loom
                    // checks.
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
                // SAFETY: this end may write the slot until it sends it, which loom checks.
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
    fn loom_two_slots_are_used_in_turn() {
        check::<2>(3);
    }
}
