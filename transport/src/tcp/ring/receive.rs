//! The receiving end of a link over TCP.

use super::SlotBuffers;
use crate::Sequence;
use crate::link::PostedMemory;

/// How much of a slot's message has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotContent {
    Nothing,
    /// A part, on this stream.
    Partial(usize),
    /// All of it.
    Complete(CompleteMessage),
}

/// A message of which all has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompleteMessage {
    pub(crate) len: usize,
    pub(crate) tag: u32,
    /// The sender waits for its release, because it has lent the memory.
    pub(crate) release_awaited: bool,
}

/// The memory that is posted for the first message that is not released.
#[derive(Debug)]
struct Posted {
    memory: PostedMemory,
    /// The message is being stored, or is stored, in it.
    used: bool,
}

// SAFETY: the poster promises that nothing else uses the memory.
unsafe impl Send for Posted {}

/// The receiving end of a link.
#[derive(Debug)]
pub(crate) struct ReceiveRing {
    slots: SlotBuffers,
    contents: Vec<SlotContent>,
    posted: Option<Posted>,
    /// Sequence of the first message that is not released.
    pub(crate) next: Sequence,
    /// The last release that was acknowledged to the peer.
    pub(crate) acked_to_peer: Sequence,
    /// An acknowledgement is queued on a stream.
    pub(crate) ack_queued: bool,
    /// How many messages more than were released the next acknowledgement says, for tests.
    pub(crate) ack_excess: u64,
}

/// What became of the message in posted memory that was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithdrawnMessage {
    /// There was none.
    None,
    /// This stream must drop the rest of it.
    Partial(usize),
    /// It is lost.
    Complete,
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
            posted: None,
            next: 1,
            acked_to_peer: 0,
            ack_queued: false,
            ack_excess: 0,
        }
    }

    /// A message begins to arrive on a stream. If a part of it arrived on another stream, this
    /// stream takes it over: a message is only sent again after its sender has given up the first
    /// stream.
    pub(crate) fn begin(
        &mut self,
        stream: usize,
        sequence: Sequence,
        len: usize,
        tag: u32,
    ) -> StoreDecision {
        if sequence == 0
            || sequence >= self.next + self.contents.len() as u64
            || len > self.slots.bytes
        {
            return StoreDecision::Reject;
        }
        let index = self.slots.index(sequence);
        if sequence < self.next || matches!(self.contents[index], SlotContent::Complete(_)) {
            return StoreDecision::Drop;
        }
        let before = match self.contents[index] {
            SlotContent::Partial(other) => Some(other),
            _ => None,
        };
        let is_first = sequence == self.next;
        if let Some(posted) = self.posted.as_mut().filter(|_| is_first) {
            posted.used = (len, tag) == (posted.memory.len, posted.memory.tag);
            if posted.used {
                self.contents[index] = SlotContent::Partial(stream);
                return StoreDecision::Store(posted.memory.data, before);
            }
        }
        let Some(address) = self.slots.allocate(sequence) else { return StoreDecision::NoMemory };
        self.contents[index] = SlotContent::Partial(stream);
        StoreDecision::Store(address, before)
    }

    /// The message has arrived completely. Returns whether it lies in posted memory.
    pub(crate) fn complete(&mut self, sequence: Sequence, message: CompleteMessage) -> bool {
        let index = self.slots.index(sequence);
        debug_assert!(matches!(self.contents[index], SlotContent::Partial(_)));
        self.contents[index] = SlotContent::Complete(message);
        sequence == self.next && self.posted.as_ref().is_some_and(|posted| posted.used)
    }

    /// Posts memory for the first message that is not released, if none is posted. If a part of
    /// that message is in its slot, returns the stream that delivers it: see
    /// [`store_in_posted`](Self::store_in_posted).
    pub(crate) fn post(&mut self, memory: PostedMemory) -> Option<usize> {
        if self.posted.is_some() {
            return None;
        }
        self.posted = Some(Posted { memory, used: false });
        match self.contents[self.slots.index(self.next)] {
            SlotContent::Partial(stream) => Some(stream),
            _ => None,
        }
    }

    /// A part of a message is in its slot, and the rest is still to come. If memory was posted for
    /// the message, copies the part there and returns where the rest belongs.
    pub(crate) fn store_in_posted(
        &mut self,
        sequence: Sequence,
        message: (usize, u32),
        part: usize,
    ) -> Option<*mut u8> {
        if sequence != self.next {
            return None;
        }
        let slot = self.slots.address(sequence);
        let Posted { memory, used } = self.posted.as_mut()?;
        if *used || message != (memory.len, memory.tag) {
            return None;
        }
        *used = true;
        // SAFETY: the part is in the slot, and the posted memory is as long as the message. The
        // poster promised that nothing else uses it.
        unsafe { memory.data.copy_from_nonoverlapping(slot, part) };
        Some(memory.data.wrapping_add(part))
    }

    /// Forgets the posted memory, and what was stored in it.
    pub(crate) fn withdraw(&mut self) -> WithdrawnMessage {
        if !self.posted.take().is_some_and(|posted| posted.used) {
            return WithdrawnMessage::None;
        }
        let index = self.slots.index(self.next);
        match std::mem::replace(&mut self.contents[index], SlotContent::Nothing) {
            SlotContent::Nothing => WithdrawnMessage::None,
            SlotContent::Partial(stream) => WithdrawnMessage::Partial(stream),
            SlotContent::Complete(_) => WithdrawnMessage::Complete,
        }
    }

    /// A stream ended: forgets the messages of which it delivered a part.
    pub(crate) fn forget(&mut self, stream: usize) {
        for content in &mut self.contents {
            if *content == SlotContent::Partial(stream) {
                *content = SlotContent::Nothing;
            }
        }
    }

    /// The first message that is not released and its address, if it has arrived.
    pub(crate) fn first(&mut self) -> Option<(*const u8, CompleteMessage)> {
        let SlotContent::Complete(message) = self.contents[self.slots.index(self.next)] else {
            return None;
        };
        let data = match &self.posted {
            Some(posted) if posted.used => posted.memory.data,
            _ => self.slots.address(self.next),
        };
        Some((data.cast_const(), message))
    }

    /// Releases the first message. Returns whether it lies in posted memory.
    pub(crate) fn release(&mut self) -> bool {
        let index = self.slots.index(self.next);
        self.contents[index] = SlotContent::Nothing;
        self.next += 1;
        self.posted.take().is_some_and(|posted| posted.used)
    }

    /// How many of the messages that are not released have arrived in sequence.
    pub(crate) fn arrived(&self) -> u32 {
        let is_here = |sequence: &Sequence| {
            matches!(self.contents[self.slots.index(*sequence)], SlotContent::Complete(_))
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
    use crate::tcp::ring::SendRing;

    fn complete(len: usize, tag: u32) -> CompleteMessage {
        CompleteMessage { len, tag, release_awaited: false }
    }

    /// Length and tag of the first message.
    fn first(ring: &mut ReceiveRing) -> Option<(usize, u32)> {
        ring.first().map(|(_, message)| (message.len, message.tag))
    }

    #[test]
    fn messages_from_all_streams_are_taken_once_and_in_sequence() {
        let mut ring = ReceiveRing::new(2, 64);
        assert!(matches!(ring.begin(1, 2, 5, 7), StoreDecision::Store(_, None)));
        ring.complete(2, complete(5, 7));
        assert_eq!((ring.first(), ring.arrived()), (None, 0));
        assert_eq!(ring.begin(0, 3, 1, 0), StoreDecision::Reject, "beyond the credits");
        assert_eq!(ring.begin(0, 1, 65, 0), StoreDecision::Reject, "longer than a slot");
        assert!(matches!(ring.begin(0, 1, 4, 6), StoreDecision::Store(_, None)));
        // Stream 0 is given up after a part; the message comes again, and so does a complete one.
        assert!(matches!(ring.begin(1, 1, 4, 6), StoreDecision::Store(_, Some(0))));
        ring.forget(0);
        ring.complete(1, complete(4, 6));
        assert_eq!(ring.begin(1, 2, 5, 7), StoreDecision::Drop);
        assert_eq!(first(&mut ring), Some((4, 6)));
        assert_eq!(ring.arrived(), 2);
        ring.release();
        assert_eq!(ring.arrived(), 1);
        assert_eq!(ring.begin(1, 1, 4, 6), StoreDecision::Drop, "released before");
        assert_eq!(first(&mut ring), Some((5, 7)));
        assert_eq!(ring.unacked(), 1);
    }

    #[test]
    fn memory_that_does_not_exist_is_no_panic() {
        let mut ring = ReceiveRing::new(2, 1 << 60);
        assert_eq!(ring.begin(0, 1, 4, 6), StoreDecision::NoMemory);
        assert_eq!((ring.first(), ring.arrived()), (None, 0));
        assert_eq!(SendRing::new(2, 1 << 60).allocate(), None);
    }

    #[test]
    fn posted_memory_takes_the_message_for_which_it_was_posted_and_no_other() {
        let mut bytes = [0_u8; 4];
        let memory = PostedMemory { data: bytes.as_mut_ptr(), len: 4, tag: 6 };
        let store =
            |ring: &mut ReceiveRing, sequence, len, tag| match ring.begin(0, sequence, len, tag) {
                StoreDecision::Store(to, None) => to,
                other => panic!("{other:?}"),
            };
        for (sequence, len, tag, posted) in
            [(1, 4, 6, true), (1, 4, 7, false), (1, 3, 6, false), (2, 4, 6, false)]
        {
            let mut ring = ReceiveRing::new(2, 64);
            assert_eq!(ring.post(memory), None);
            assert_eq!(store(&mut ring, sequence, len, tag) == memory.data, posted);
            assert_eq!(ring.complete(sequence, complete(len, tag)), posted);
            assert_eq!(ring.first().is_some_and(|(at, _)| at == memory.data), posted);
            if sequence == 1 {
                assert_eq!(ring.release(), posted);
                assert_ne!(store(&mut ring, 2, 4, 6), memory.data, "for one message only");
            }
        }
        // A stream that delivers a part of the message ends, and the message comes again.
        let mut ring = ReceiveRing::new(2, 64);
        ring.post(memory);
        assert_eq!(store(&mut ring, 1, 4, 6), memory.data);
        ring.forget(0);
        assert_eq!(ring.first(), None);
        assert_ne!(store(&mut ring, 1, 3, 6), memory.data, "the repetition differs");
    }

    #[test]
    fn a_part_in_the_slot_moves_to_memory_that_is_posted_later() {
        let mut bytes = [0_u8; 4];
        let memory = PostedMemory { data: bytes.as_mut_ptr(), len: 4, tag: 6 };
        let mut ring = ReceiveRing::new(2, 64);
        let StoreDecision::Store(slot, None) = ring.begin(3, 1, 4, 6) else { panic!() };
        // SAFETY: a slot has 64 bytes.
        unsafe { slot.copy_from_nonoverlapping([1, 2].as_ptr(), 2) };
        assert_eq!(ring.post(memory), Some(3));
        assert_eq!(ring.store_in_posted(2, (4, 6), 2), None, "a later message");
        assert_eq!(ring.store_in_posted(1, (4, 5), 2), None, "another tag");
        let rest = ring.store_in_posted(1, (4, 6), 2);
        assert_eq!(rest, Some(memory.data.wrapping_add(2)));
        assert_eq!(ring.withdraw(), WithdrawnMessage::Partial(3));
        assert_eq!(bytes, [1, 2, 0, 0]);
        assert_eq!(ring.withdraw(), WithdrawnMessage::None);
    }
}
