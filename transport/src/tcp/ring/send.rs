//! The sending end of a link over TCP.

use super::SlotBuffers;
use crate::Sequence;
use crate::link::HeaderDamage;

/// The first byte of memory of the caller from which a message is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LentMemory(pub(crate) *const u8);

// SAFETY: the lender promises that the memory is valid and unchanged while any thread of this
// process may send it.
unsafe impl Send for LentMemory {}

/// A message that is sent and not yet released.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SentMessage {
    pub(crate) len: usize,
    pub(crate) tag: u32,
    /// Where the message lies, if not in its slot.
    pub(crate) lent: Option<LentMemory>,
    /// The stream that carries it; `None` while there is no stream.
    pub(crate) stream: Option<usize>,
    /// A stream has begun to write it, so that the peer may have it.
    pub(crate) begun: bool,
    /// What is wrong in its header when it is sent for the first time, for tests.
    pub(crate) damage: Option<HeaderDamage>,
}

/// A message without content in a slot.
pub(crate) const EMPTY_MESSAGE: SentMessage =
    SentMessage { len: 0, tag: 0, lent: None, stream: None, begun: false, damage: None };

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

    /// Where the bytes of a message lie that is not released.
    pub(crate) fn payload(&mut self, sequence: Sequence) -> *const u8 {
        match self.sent(sequence).lent {
            Some(LentMemory(data)) => data,
            None => self.address(sequence).cast_const(),
        }
    }

    /// Copies the messages that lie in memory of the caller into their slots.
    pub(crate) fn copy_lent(&mut self) {
        for sequence in self.unreleased() {
            let SentMessage { len, lent, .. } = *self.sent(sequence);
            let Some(LentMemory(data)) = lent else { continue };
            let slot = self.address(sequence);
            // SAFETY: the lent memory is valid until the release. It has at most the bytes of a
            // slot, and that of this message is not used for another one.
            unsafe { slot.copy_from_nonoverlapping(data, len) };
            self.sent(sequence).lent = None;
        }
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
    /// message that was not sent. One that only waits to be written was not sent: if it counted as
    /// released, it would never be.
    pub(crate) fn acknowledge(&mut self, ack: Sequence, arrived: u32) -> Option<bool> {
        let arrived = ack.checked_add(arrived.into())?;
        if arrived >= self.next
            || (self.acked + 1..=arrived).any(|sequence| !self.sent(sequence).begun)
        {
            return None;
        }
        let is_news = ack > self.acked || arrived > self.arrived;
        self.acked = self.acked.max(ack);
        self.arrived = self.arrived.max(arrived);
        Some(is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_follow_acknowledgements() {
        let mut ring = SendRing::new(1, 64);
        assert_eq!(ring.acknowledge(1, 0), None, "it acknowledges a message that was not sent");
        ring.next = 2;
        ring.sent(1).len = 9;
        assert_eq!(ring.acknowledge(1, 0), None, "it acknowledges a message that was not written");
        assert_eq!(ring.acknowledge(0, 1), None, "the same of its arrival");
        ring.sent(1).begun = true;
        assert_eq!(ring.acknowledge(0, 2), None, "the arrival of a message that was not sent");
        assert_eq!((ring.acknowledge(u64::MAX, 1), ring.under_way()), (None, (1, 9)));
        assert_eq!(ring.acknowledge(0, 1), Some(true));
        assert_eq!((ring.has_credit(), ring.under_way()), (false, (0, 0)));
        assert_eq!(ring.acknowledge(1, 0), Some(true));
        assert_eq!(ring.acknowledge(1, 0), Some(false));
        assert!(ring.has_credit());
    }

    #[test]
    fn lent_messages_can_be_copied_until_they_are_released() {
        let mut bytes = [7_u8; 9];
        let mut ring = SendRing::new(2, 64);
        for sequence in 1..=2 {
            assert!(ring.allocate().is_some());
            ring.next += 1;
            let lent = Some(LentMemory(bytes.as_ptr()));
            *ring.sent(sequence) = SentMessage { len: 9, lent, begun: true, ..EMPTY_MESSAGE };
            assert_eq!(ring.payload(sequence), bytes.as_ptr());
        }
        ring.acknowledge(1, 0);
        ring.copy_lent();
        assert_eq!(ring.payload(1), bytes.as_ptr(), "it is released");
        bytes = [0; 9];
        let slot = ring.address(2).cast_const();
        assert_eq!(ring.payload(2), slot);
        // SAFETY: nine bytes were copied into the slot.
        assert_eq!(unsafe { std::slice::from_raw_parts(slot, 9) }, [7; 9]);
        assert_eq!(bytes, [0; 9]);
    }
}
