//! The slots of one link over TCP, in memory of this process. A slot is allocated when it is first
//! used.
//!
//! The sender keeps a message until its release is acknowledged, so that it can send it again on
//! another stream. The receiver puts messages from all streams into sequence and takes each once.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::Sequence;
use crate::link::HeaderDamage;

/// The memory of a slot, uninitialized at first.
#[derive(Debug)]
struct SlotBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer owns its memory.
unsafe impl Send for SlotBuffer {}

impl SlotBuffer {
    /// None if the process has no memory left.
    fn new(bytes: usize) -> Option<Self> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(64));
        let layout = Layout::from_size_align(bytes, 64).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        Some(Self { start, layout })
    }
}

impl Drop for SlotBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Debug, Default)]
struct SlotBuffers {
    buffers: Vec<Option<SlotBuffer>>,
    bytes: usize,
}

impl SlotBuffers {
    fn new(depth: u32, bytes: usize) -> Self {
        Self { buffers: (0..depth).map(|_| None).collect(), bytes }
    }

    fn index(&self, sequence: Sequence) -> usize {
        ((sequence - 1) % self.buffers.len() as u64) as usize
    }

    /// The address of the slot, which is allocated if it is not there. None if the process has no
    /// memory left.
    fn allocate(&mut self, sequence: Sequence) -> Option<*mut u8> {
        let (index, bytes) = (self.index(sequence), self.bytes);
        let buffer = &mut self.buffers[index];
        if buffer.is_none() {
            *buffer = SlotBuffer::new(bytes);
        }
        buffer.as_ref().map(|buffer| buffer.start.as_ptr())
    }

    /// The address of a slot that has been allocated.
    fn address(&self, sequence: Sequence) -> *mut u8 {
        let buffer = self.buffers[self.index(sequence)].as_ref();
        buffer.expect("a message lies in a slot that was allocated for it").start.as_ptr()
    }
}

/// A message that is sent and not yet released.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentMessage {
    pub(crate) len: usize,
    pub(crate) tag: u32,
    /// The stream that carries it; `None` while there is no stream.
    pub(crate) stream: Option<usize>,
    /// What is wrong in its header when it is sent for the first time, for tests.
    pub(crate) damage: Option<HeaderDamage>,
}

/// The sending end of a link.
#[derive(Debug)]
pub(crate) struct SendRing {
    slots: SlotBuffers,
    sent: Vec<SentMessage>,
    /// Sequence of the next message.
    pub(crate) next: Sequence,
    /// Sequence of the last message that is released.
    pub(crate) acked: Sequence,
    /// Sequence of the last message of which the peer has said that it and all before it are there.
    arrived: Sequence,
}

impl SendRing {
    pub(crate) fn new(depth: u32, bytes: usize) -> Self {
        let sent = vec![SentMessage::default(); depth as usize];
        Self { slots: SlotBuffers::new(depth, bytes), sent, next: 1, acked: 0, arrived: 0 }
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.next - self.acked <= self.sent.len() as u64
    }

    /// The slot of the next message. None if the process has no memory left.
    pub(crate) fn allocate(&mut self) -> Option<*mut u8> {
        self.slots.allocate(self.next)
    }

    /// The slot of a message that is not released.
    pub(crate) fn address(&self, sequence: Sequence) -> *mut u8 {
        self.slots.address(sequence)
    }

    pub(crate) fn sent(&mut self, sequence: Sequence) -> &mut SentMessage {
        let index = self.slots.index(sequence);
        &mut self.sent[index]
    }

    /// The sequences of the messages that are sent and not yet released.
    pub(crate) fn unreleased(&self) -> std::ops::Range<Sequence> {
        self.acked + 1..self.next
    }

    /// The number and the bytes of the messages that are sent and not known to be at the peer.
    pub(crate) fn under_way(&mut self) -> (u64, u64) {
        let sequences = self.arrived.max(self.acked) + 1..self.next;
        let messages = sequences.end - sequences.start;
        (messages, sequences.map(|sequence| self.sent(sequence).len as u64).sum())
    }

    /// Handles an acknowledgement of the release of all messages up to `ack`, and of the arrival of
    /// `arrived` messages after them. Returns whether that is news; `None` if it acknowledges a
    /// message that was not sent.
    pub(crate) fn acknowledge(&mut self, ack: Sequence, arrived: u32) -> Option<bool> {
        let arrived = ack.checked_add(arrived.into())?;
        if arrived >= self.next {
            return None;
        }
        let is_news = ack > self.acked || arrived > self.arrived;
        self.acked = self.acked.max(ack);
        self.arrived = self.arrived.max(arrived);
        Some(is_news)
    }
}

/// How much of a slot's message has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotContent {
    Nothing,
    /// A part, on this stream.
    Partial(usize),
    /// All of it.
    Complete {
        len: usize,
        tag: u32,
    },
}

/// The receiving end of a link.
#[derive(Debug)]
pub(crate) struct ReceiveRing {
    slots: SlotBuffers,
    contents: Vec<SlotContent>,
    /// Sequence of the first message that is not released.
    pub(crate) next: Sequence,
    /// The last release that was acknowledged to the peer.
    pub(crate) acked_to_peer: Sequence,
    /// An acknowledgement is queued on a stream.
    pub(crate) ack_queued: bool,
    /// How many messages more than were released the next acknowledgement says, for tests.
    pub(crate) ack_excess: u64,
}

/// What to do with a message that begins to arrive on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreDecision {
    /// Store it at this address. If another stream had a part of it, that stream must drop it.
    Store(*mut u8, Option<usize>),
    /// Drop it, because it has arrived before.
    Drop,
    /// Reject it, because no correct peer sends it.
    Reject,
    /// The process has no memory for it.
    NoMemory,
}

impl ReceiveRing {
    pub(crate) fn new(depth: u32, bytes: usize) -> Self {
        let contents = vec![SlotContent::Nothing; depth as usize];
        Self {
            slots: SlotBuffers::new(depth, bytes),
            contents,
            next: 1,
            acked_to_peer: 0,
            ack_queued: false,
            ack_excess: 0,
        }
    }

    /// A message begins to arrive on a stream. If a part of it arrived on another stream, this
    /// stream takes it over: a message is only sent again after its sender has given up the first
    /// stream.
    pub(crate) fn begin(&mut self, stream: usize, sequence: Sequence, len: usize) -> StoreDecision {
        if sequence == 0
            || sequence >= self.next + self.contents.len() as u64
            || len > self.slots.bytes
        {
            return StoreDecision::Reject;
        }
        let index = self.slots.index(sequence);
        if sequence < self.next || matches!(self.contents[index], SlotContent::Complete { .. }) {
            return StoreDecision::Drop;
        }
        let before = match self.contents[index] {
            SlotContent::Partial(other) => Some(other),
            _ => None,
        };
        let Some(address) = self.slots.allocate(sequence) else { return StoreDecision::NoMemory };
        self.contents[index] = SlotContent::Partial(stream);
        StoreDecision::Store(address, before)
    }

    /// The message has arrived completely.
    pub(crate) fn complete(&mut self, sequence: Sequence, len: usize, tag: u32) {
        let index = self.slots.index(sequence);
        debug_assert!(matches!(self.contents[index], SlotContent::Partial(_)));
        self.contents[index] = SlotContent::Complete { len, tag };
    }

    /// A stream ended: forgets the messages of which it delivered a part.
    pub(crate) fn forget(&mut self, stream: usize) {
        for content in &mut self.contents {
            if *content == SlotContent::Partial(stream) {
                *content = SlotContent::Nothing;
            }
        }
    }

    /// Address, length and tag of the first message that is not released, if it has arrived.
    pub(crate) fn first(&mut self) -> Option<(*const u8, usize, u32)> {
        match self.contents[self.slots.index(self.next)] {
            SlotContent::Complete { len, tag } => {
                Some((self.slots.address(self.next).cast_const(), len, tag))
            }
            _ => None,
        }
    }

    pub(crate) fn release(&mut self) {
        let index = self.slots.index(self.next);
        self.contents[index] = SlotContent::Nothing;
        self.next += 1;
    }

    /// How many of the messages that are not released have arrived in sequence.
    pub(crate) fn arrived(&self) -> u32 {
        let is_here = |sequence: &Sequence| {
            matches!(self.contents[self.slots.index(*sequence)], SlotContent::Complete { .. })
        };
        let slots = self.next..self.next + self.contents.len() as u64;
        slots.take_while(is_here).count() as u32
    }

    /// Number of releases that the peer was not told of.
    pub(crate) fn unacked(&self) -> u64 {
        self.next - 1 - self.acked_to_peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_all_streams_are_taken_once_and_in_sequence() {
        let mut ring = ReceiveRing::new(2, 64);
        assert!(matches!(ring.begin(1, 2, 5), StoreDecision::Store(_, None)));
        ring.complete(2, 5, 7);
        assert_eq!((ring.first(), ring.arrived()), (None, 0));
        assert_eq!(ring.begin(0, 3, 1), StoreDecision::Reject, "beyond the credits");
        assert_eq!(ring.begin(0, 1, 65), StoreDecision::Reject, "longer than a slot");
        assert!(matches!(ring.begin(0, 1, 4), StoreDecision::Store(_, None)));
        // Stream 0 is given up after a part; the message comes again, and so does a complete one.
        assert!(matches!(ring.begin(1, 1, 4), StoreDecision::Store(_, Some(0))));
        ring.forget(0);
        ring.complete(1, 4, 6);
        assert_eq!(ring.begin(1, 2, 5), StoreDecision::Drop);
        assert_eq!(ring.first().map(|(_, len, tag)| (len, tag)), Some((4, 6)));
        assert_eq!(ring.arrived(), 2);
        ring.release();
        assert_eq!(ring.arrived(), 1);
        assert_eq!(ring.begin(1, 1, 4), StoreDecision::Drop, "released before");
        assert_eq!(ring.first().map(|(_, len, tag)| (len, tag)), Some((5, 7)));
        assert_eq!(ring.unacked(), 1);
    }

    #[test]
    fn memory_that_does_not_exist_is_no_panic() {
        let mut ring = ReceiveRing::new(2, 1 << 60);
        assert_eq!(ring.begin(0, 1, 4), StoreDecision::NoMemory);
        assert_eq!((ring.first(), ring.arrived()), (None, 0));
        assert_eq!(SendRing::new(2, 1 << 60).allocate(), None);
    }

    #[test]
    fn credits_follow_acknowledgements() {
        let mut ring = SendRing::new(1, 64);
        assert_eq!(ring.acknowledge(1, 0), None, "it acknowledges a message that was not sent");
        ring.next = 2;
        ring.sent(1).len = 9;
        assert_eq!(ring.acknowledge(0, 2), None, "the arrival of a message that was not sent");
        assert_eq!((ring.acknowledge(u64::MAX, 1), ring.under_way()), (None, (1, 9)));
        assert_eq!(ring.acknowledge(0, 1), Some(true));
        assert_eq!((ring.has_credit(), ring.under_way()), (false, (0, 0)));
        assert_eq!(ring.acknowledge(1, 0), Some(true));
        assert_eq!(ring.acknowledge(1, 0), Some(false));
        assert!(ring.has_credit());
    }
}
