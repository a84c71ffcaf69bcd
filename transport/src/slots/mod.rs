//! The slot protocol: messages of any size, first in first out, each released on its own.
//!
//! There is one header for each message that may be under way; they are used in turn. The sender
//! publishes in a header where its message lies, and stores the message's sequence last, with
//! release. The receiver releases a message by storing its sequence in the link's ack word. The
//! words that the two sides write lie on different cache lines.
//!
//! The sender places messages in the ring's memory one behind the other, and begins anew at the end
//! of its *cycle*, whose length it chooses (see `sender`). A message takes the cache lines that it
//! fills.
//!
//! If the receiver can read the sender's memory, a message may be *lent*. It then takes no memory
//! of the ring, but a place in the order and a credit. Between threads, it lies at an address of
//! their process. Between processes, it lies at an offset of a segment, which the ends in `shm`
//! look up.

mod receiver;
mod sender;

use core::ptr;

use crate::ll::AckWord;
use crate::sync::{AtomicU64, Cell};

pub use self::receiver::SlotReceiver;
pub use self::sender::SlotSender;

/// The header of a message. All zeros is a header that never described a message.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SlotHeader {
    /// Sequence of the message that the header describes.
    sequence: AtomicU64,
    descriptor: Cell<SlotDescriptor>,
}

/// Where a message lies, and its length and tag.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct SlotDescriptor {
    /// [`IN_RING`], [`LENT_ADDRESS`] or [`LENT_SEGMENT`].
    place: u32,
    tag: u32,
    len: usize,
    /// In the ring: the offset from its first byte. Lent: the address in the process of both ends,
    /// or the offset within the segment.
    position: *const u8,
    /// The segment of the sender's process in which a lent message lies.
    segment: u64,
}

/// The message lies in the memory of the ring.
const IN_RING: u32 = 0;
/// The message lies at an address of the process of both ends.
const LENT_ADDRESS: u32 = 1;
/// The message lies in a segment of the sender's process.
const LENT_SEGMENT: u32 = 2;

impl SlotDescriptor {
    fn in_ring(offset: usize, len: usize, tag: u32) -> Self {
        let position = ptr::without_provenance(offset);
        Self { place: IN_RING, tag, len, position, segment: 0 }
    }
}

// SAFETY: descriptors are only accessed while the sequences allow it, which the loom model checks.
// A lent address is only followed in the process to which it belongs.
unsafe impl Sync for SlotHeader {}
// SAFETY: as above.
unsafe impl Send for SlotHeader {}

impl Default for SlotHeader {
    fn default() -> Self {
        let descriptor = Cell::new(SlotDescriptor::in_ring(0, 0, 0));
        Self { sequence: AtomicU64::new(0), descriptor }
    }
}

/// The addresses of the parts of a slot ring.
#[derive(Clone, Copy, Debug)]
pub struct SlotRingMemory {
    /// `depth` headers.
    pub headers: *const SlotHeader,
    /// The memory of the messages, of [`ring_bytes`]; aligned to 64.
    pub slots: *mut u8,
    /// The bytes of the longest message that is not lent; a multiple of 64.
    pub slot_bytes: usize,
    /// The most messages that may be under way, at least one.
    pub depth: u32,
    /// The word in which the receiver acknowledges.
    pub ack: *const AckWord,
    /// Both ends are in one process, so that any memory may be lent.
    pub same_process: bool,
}

/// The bytes of memory of a ring of `depth` messages of `slot_bytes` each. Messages lie in one
/// piece, so that up to one slot remains empty where the sender begins anew.
pub const fn ring_bytes(slot_bytes: usize, depth: u32) -> usize {
    slot_bytes * (depth as usize + 1)
}

impl SlotRingMemory {
    fn header(&self, index: u32) -> &SlotHeader {
        debug_assert!(index < self.depth);
        // SAFETY: the callers of `SlotSender::new` and `SlotReceiver::new` promised `depth` headers
        // that live as long as the ends.
        unsafe { &*self.headers.add(index as usize) }
    }

    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < ring_bytes(self.slot_bytes, self.depth));
        self.slots.wrapping_add(offset)
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
        slots: Cell<[u8; 192]>,
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
            slots: Cell::new([0; 192]),
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
        let in_ring = SlotDescriptor::in_ring;
        for (sequence, descriptor) in [
            (9, in_ring(0, 1, 0)),
            (1, in_ring(0, 65, 0)),
            (1, in_ring(1, 1, 0)),
            (1, in_ring(192, 0, 0)),
            (1, in_ring(192, 1, 0)),
            (1, in_ring(usize::MAX & !63, 64, 0)),
            (1, SlotDescriptor { place: LENT_ADDRESS, ..in_ring(64, 1, 0) }),
            (1, SlotDescriptor { place: LENT_SEGMENT, segment: 1, ..in_ring(0, 1, 0) }),
            (1, SlotDescriptor { place: 3, ..in_ring(0, 1, 0) }),
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

    /// Sends messages of `lens` in turn with as many under way as possible, and returns their
    /// offsets.
    fn offsets(cycle: u32, lens: &[usize]) -> Vec<usize> {
        let (memory, mut sender, mut receiver) = ends(false);
        sender.set_cycle(cycle);
        let base = memory.slots.with(|slots| slots.cast::<u8>());
        let mut offsets = Vec::new();
        for &len in lens {
            let slot = loop {
                if let Some(slot) = sender.reserve().unwrap() {
                    break slot;
                }
                receiver.receive().unwrap().expect("a message under way");
                receiver.release();
            };
            offsets.push(slot.data.addr() - base.addr());
            sender.send(len, 0);
        }
        offsets
    }

    #[test]
    fn messages_lie_one_behind_the_other_within_the_cycle() {
        assert_eq!(offsets(2, &[64, 64, 64, 64]), [0, 64, 128, 0]);
        assert_eq!(offsets(1, &[64, 64, 64, 64]), [0, 64, 0, 64]);
        assert_eq!(offsets(2, &[1, 65 - 1, 0, 1, 1]), [0, 64, 128, 128, 0]);
        assert_eq!(offsets(9, &[64; 4]), [0, 64, 128, 0], "no cycle exceeds the ring");
        assert_eq!(offsets(0, &[64; 3]), [0, 64, 0], "a cycle holds a message");
    }

    /// Random lengths, cycles and releases: no two messages under way share memory, and as many as
    /// the cycle promises can always be sent.
    #[test]
    fn messages_under_way_never_overlap() {
        const SLOT: usize = 256;
        const DEPTH: u32 = 5;
        #[repr(C, align(64))]
        struct Memory([u8; ring_bytes(SLOT, DEPTH)]);
        let mut data = Memory([0; ring_bytes(SLOT, DEPTH)]);
        let memory = Arc::new(TestRing {
            slots: Cell::new([0; 192]),
            headers: Default::default(),
            ack: AckWord::default(),
            header: RankHeader::default(),
        });
        let headers: [SlotHeader; DEPTH as usize] = Default::default();
        let ring = SlotRingMemory {
            headers: headers.as_ptr(),
            slots: data.0.as_mut_ptr(),
            slot_bytes: SLOT,
            depth: DEPTH,
            ack: &raw const memory.ack,
            same_process: false,
        };
        let header = &raw const memory.header;
        // SAFETY: the memory outlives the ends, of which there is one pair.
        let (mut sender, mut receiver) = unsafe {
            let pair = RankPair::new(header, header, 5, memory.clone());
            (SlotSender::new(ring, pair.clone()), SlotReceiver::new(ring, pair))
        };
        let mut random = 7_u64;
        let mut choose = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut under_way = std::collections::VecDeque::new();
        // The cycle may promise less while messages under a smaller one are under way.
        let (mut cycle, mut promised, mut refused) = (DEPTH, DEPTH, 0);
        for _ in 0..100_000 {
            promised = if under_way.is_empty() { cycle } else { promised.min(cycle) };
            match choose(9) {
                0 if choose(20) == 0 => {
                    cycle = 1 + choose(DEPTH.into()) as u32;
                    sender.set_cycle(cycle);
                }
                0..4 if !under_way.is_empty() => {
                    let message = receiver.receive().unwrap().expect("it was sent");
                    let (start, len) = under_way.pop_front().unwrap();
                    assert_eq!((message.data.addr(), message.len), (start, len));
                    receiver.release();
                }
                _ => {
                    let Some(slot) = sender.reserve().unwrap() else {
                        assert!(
                            under_way.len() >= promised as usize,
                            "a promised credit is missing"
                        );
                        refused += 1;
                        continue;
                    };
                    let start = slot.data.addr();
                    for &(other, len) in &under_way {
                        assert!(start + SLOT <= other || other + len <= start, "an overlap");
                    }
                    assert!(start + SLOT <= data.0.as_ptr().addr() + data.0.len());
                    let len = [0, 1, 63, 64, 65, 128, SLOT - 1, SLOT][choose(8) as usize];
                    sender.send(len, 0);
                    under_way.push_back((start, len));
                }
            }
        }
        assert!(refused > 1000);
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
        /// The content of the ring by cache line, so that loom sees the accesses to it.
        payload: Vec<Cell<u64>>,
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
            payload: (0..=DEPTH).map(|_| Cell::new(0)).collect(),
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

    /// Every message takes a cache line, and slots are one cache line long.
    fn check<const DEPTH: usize>(messages: u64, cycle: u32) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let (memory, mut sender, mut receiver) = ends::<DEPTH>();
            sender.set_cycle(cycle);
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
    fn loom_one_message_under_way() {
        check::<1>(3, 1);
    }

    #[test]
    fn loom_two_messages_under_way() {
        check::<2>(3, 2);
    }

    /// Two messages under way in a cycle of two cache lines: the third message waits for memory,
    /// not for a header.
    #[test]
    fn loom_a_cycle_smaller_than_the_ring() {
        check::<3>(3, 1);
    }
}
