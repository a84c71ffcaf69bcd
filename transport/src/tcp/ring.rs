//! The slots of one link over TCP: memory of this process alone, each slot allocated when it is first used.
//!
//! The sender keeps a message until its release is acknowledged, so that it can be sent again on another stream. The receiver
//! puts messages into sequence, from whichever stream they come, and takes each once.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::link::Sequence;

/// Memory of a slot; its content begins undefined.
#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer is memory that it owns.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Self {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(64));
        let layout = Layout::from_size_align(bytes, 64).expect("slots are bounded by the layout");
        // SAFETY: the size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        Self { start, layout }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Debug, Default)]
struct Slots {
    buffers: Vec<Option<Buffer>>,
    bytes: usize,
}

impl Slots {
    fn new(depth: u32, bytes: usize) -> Self {
        Self { buffers: (0..depth).map(|_| None).collect(), bytes }
    }

    fn index(&self, sequence: Sequence) -> usize {
        ((sequence - 1) % self.buffers.len() as u64) as usize
    }

    fn address(&mut self, sequence: Sequence) -> *mut u8 {
        let (index, bytes) = (self.index(sequence), self.bytes);
        self.buffers[index].get_or_insert_with(|| Buffer::new(bytes)).start.as_ptr()
    }
}

/// What the sender knows of a message that is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) len: usize,
    pub(crate) tag: u32,
    /// The stream that is to carry it; None while there is no stream.
    pub(crate) stream: Option<usize>,
}

/// The sending end of a link.
#[derive(Debug)]
pub(crate) struct Sending {
    slots: Slots,
    sent: Vec<Sent>,
    /// Sequence of the next message.
    pub(crate) next: Sequence,
    pub(crate) acked: Sequence,
}

impl Sending {
    pub(crate) fn new(depth: u32, bytes: usize) -> Self {
        let sent = vec![Sent::default(); depth as usize];
        Self { slots: Slots::new(depth, bytes), sent, next: 1, acked: 0 }
    }

    pub(crate) fn has_credit(&self) -> bool {
        self.next - self.acked <= self.sent.len() as u64
    }

    pub(crate) fn address(&mut self, sequence: Sequence) -> *mut u8 {
        self.slots.address(sequence)
    }

    pub(crate) fn sent(&mut self, sequence: Sequence) -> &mut Sent {
        let index = self.slots.index(sequence);
        &mut self.sent[index]
    }

    /// Messages that are under way.
    pub(crate) fn under_way(&self) -> std::ops::Range<Sequence> {
        self.acked + 1..self.next
    }

    /// Takes an acknowledgement; whether it is news, or None if it is nonsense.
    pub(crate) fn acknowledge(&mut self, ack: Sequence) -> Option<bool> {
        if ack >= self.next {
            return None;
        }
        let news = ack > self.acked;
        self.acked = self.acked.max(ack);
        Some(news)
    }
}

/// How far the message of a slot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Missing,
    /// This stream is bringing it.
    Coming(usize),
    Here {
        len: usize,
        tag: u32,
    },
}

/// The receiving end of a link.
#[derive(Debug)]
pub(crate) struct Receiving {
    slots: Slots,
    arrivals: Vec<Arrival>,
    /// Sequence of the first message that is not released.
    pub(crate) next: Sequence,
    /// The last release that was told.
    pub(crate) told: Sequence,
    /// A frame that tells is waiting to be written.
    pub(crate) telling: bool,
}

/// What to do with a message that a stream brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bring {
    /// Read it to here. The stream that was bringing it before, if any, shall drop it.
    Keep(*mut u8, Option<usize>),
    /// It was here before: drop it.
    Drop,
    /// No correct peer sends it.
    Wrong,
}

impl Receiving {
    pub(crate) fn new(depth: u32, bytes: usize) -> Self {
        let arrivals = vec![Arrival::Missing; depth as usize];
        Self { slots: Slots::new(depth, bytes), arrivals, next: 1, told: 0, telling: false }
    }

    /// A stream begins to bring a message. What another one brought in part is taken over: a message is sent again only when
    /// the sender has given the first stream up.
    pub(crate) fn begin(&mut self, stream: usize, sequence: Sequence, len: usize) -> Bring {
        if sequence == 0
            || sequence >= self.next + self.arrivals.len() as u64
            || len > self.slots.bytes
        {
            return Bring::Wrong;
        }
        let index = self.slots.index(sequence);
        if sequence < self.next || matches!(self.arrivals[index], Arrival::Here { .. }) {
            return Bring::Drop;
        }
        let before = match self.arrivals[index] {
            Arrival::Coming(other) => Some(other),
            _ => None,
        };
        self.arrivals[index] = Arrival::Coming(stream);
        Bring::Keep(self.slots.address(sequence), before)
    }

    /// All of it is here.
    pub(crate) fn complete(&mut self, sequence: Sequence, len: usize, tag: u32) {
        let index = self.slots.index(sequence);
        debug_assert!(matches!(self.arrivals[index], Arrival::Coming(_)));
        self.arrivals[index] = Arrival::Here { len, tag };
    }

    /// A stream ended: what it brought in part is missing.
    pub(crate) fn forget(&mut self, stream: usize) {
        for arrival in &mut self.arrivals {
            if *arrival == Arrival::Coming(stream) {
                *arrival = Arrival::Missing;
            }
        }
    }

    /// Address, length and tag of the first message that is not released, if it is here.
    pub(crate) fn first(&mut self) -> Option<(*const u8, usize, u32)> {
        match self.arrivals[self.slots.index(self.next)] {
            Arrival::Here { len, tag } => {
                Some((self.slots.address(self.next).cast_const(), len, tag))
            }
            _ => None,
        }
    }

    pub(crate) fn release(&mut self) {
        let index = self.slots.index(self.next);
        self.arrivals[index] = Arrival::Missing;
        self.next += 1;
    }

    /// Releases that the sender does not know of.
    pub(crate) fn untold(&self) -> u64 {
        self.next - 1 - self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_once_and_in_sequence_from_any_stream() {
        let mut ring = Receiving::new(2, 64);
        assert!(matches!(ring.begin(1, 2, 5), Bring::Keep(_, None)));
        ring.complete(2, 5, 7);
        assert_eq!(ring.first(), None);
        assert_eq!(ring.begin(0, 3, 1), Bring::Wrong, "beyond the credits");
        assert_eq!(ring.begin(0, 1, 65), Bring::Wrong, "longer than a slot");
        assert!(matches!(ring.begin(0, 1, 4), Bring::Keep(_, None)));
        // Stream 0 is given up half-way; the message comes again, and another that was here before.
        assert!(matches!(ring.begin(1, 1, 4), Bring::Keep(_, Some(0))));
        ring.forget(0);
        ring.complete(1, 4, 6);
        assert_eq!(ring.begin(1, 2, 5), Bring::Drop);
        assert_eq!(ring.first().map(|(_, len, tag)| (len, tag)), Some((4, 6)));
        ring.release();
        assert_eq!(ring.begin(1, 1, 4), Bring::Drop, "released before");
        assert_eq!(ring.first().map(|(_, len, tag)| (len, tag)), Some((5, 7)));
        assert_eq!(ring.untold(), 1);
    }

    #[test]
    fn credits_follow_acknowledgements() {
        let mut ring = Sending::new(1, 64);
        assert_eq!(ring.acknowledge(1), None, "of a message that was never sent");
        ring.next = 2;
        assert!(!ring.has_credit());
        assert_eq!(ring.acknowledge(1), Some(true));
        assert_eq!(ring.acknowledge(1), Some(false));
        assert!(ring.has_credit());
    }
}
