//! The slots of one link, in registered memory: those to which the peer writes, and those from
//! which the adapter sends.
//!
//! A slot has 64 bytes in front of the payload, of which the last 32 are the header, so that one
//! write carries both.

use std::collections::HashSet;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use maypole_verbs::VerbsError;
use maypole_verbs::{LocalMemory, MemoryAccess, MemoryRegion, ProtectionDomain, RemoteMemory};

use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::memory::Mapping;
use crate::process::PerProcess;
use crate::{Rank, Sequence};

/// Bytes in front of the payload.
const PREFIX_BYTES: usize = 64;
/// Bytes of the header, which is the end of the prefix.
pub(super) const HEADER_BYTES: usize = 32;
/// Marks a header.
const HEADER_MARK: u32 = 0x6d70_7601;

/// The header of a message, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct MessageHeader {
    pub(super) sequence: u64,
    /// The sequence up to which all messages of the channel's other direction are released.
    pub(super) ack: u64,
    pub(super) len: u32,
    pub(super) tag: u32,
    pub(super) channel: u32,
    /// [`HEADER_MARK`].
    pub(super) mark: u32,
}

const _: () = assert!(size_of::<MessageHeader>() == HEADER_BYTES);

impl MessageHeader {
    pub(super) fn new(channel: u16, sequence: Sequence, ack: u64, len: u32, tag: u32) -> Self {
        Self { sequence, ack, len, tag, channel: channel.into(), mark: HEADER_MARK }
    }
}

/// Registered memory of `depth` slots.
#[derive(Debug)]
struct SlotMemory {
    // Dropped before the memory.
    region: MemoryRegion,
    memory: Mapping,
    stride: usize,
    depth: u32,
}

impl SlotMemory {
    fn new(
        domain: &Arc<ProtectionDomain>,
        layout: &InboxLayout,
        access: MemoryAccess,
        relaxed: bool,
    ) -> Result<Self, RegistrationError> {
        let stride = PREFIX_BYTES + layout.slot_bytes;
        let bytes = stride * layout.depth as usize;
        let memory = Mapping::private(bytes).map_err(RegistrationError::Memory)?;
        let start = memory.start();
        // SAFETY: the memory is mapped as long as `self`, in which the region is dropped first. The
        // peer is told when it may write, and what it writes is read by volatile reads or after its
        // message has arrived.
        let region = unsafe { MemoryRegion::register(domain, start, bytes, access, relaxed) };
        let region = region.map_err(|error| RegistrationError::Region { bytes, error })?;
        Ok(Self { region, memory, stride, depth: layout.depth })
    }

    fn offset(&self, sequence: Sequence) -> usize {
        ((sequence - 1) % u64::from(self.depth)) as usize * self.stride
    }

    fn payload(&self, sequence: Sequence) -> *mut u8 {
        self.memory.start().wrapping_add(self.offset(sequence) + PREFIX_BYTES)
    }

    fn header(&self, sequence: Sequence) -> *mut MessageHeader {
        self.payload(sequence).wrapping_sub(HEADER_BYTES).cast()
    }
}

/// Why memory for a link cannot be registered.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum RegistrationError {
    #[error("{0}")]
    Memory(LinkError),
    #[error(
        "{bytes} bytes of memory cannot be registered for RDMA: {error}; \
         check the limit of locked memory (ulimit -l)"
    )]
    Region { bytes: usize, error: VerbsError },
}

/// A part of a message, in memory of the sender and of the receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessagePart {
    pub(super) from: LocalMemory,
    pub(super) to: RemoteMemory,
}

/// The sending end of a link.
#[derive(Debug)]
pub(super) struct SendRing {
    slots: SlotMemory,
    /// Sequence of the next message.
    pub(super) next: Sequence,
    /// Sequence of the last message that is released.
    pub(super) acked: Sequence,
    /// For each slot, the length of its message, and the number of its last work request.
    sent: Vec<(usize, u64)>,
}

impl SendRing {
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        layout: &InboxLayout,
    ) -> Result<Self, RegistrationError> {
        let slots = SlotMemory::new(domain, layout, MemoryAccess::LocalRead, false)?;
        Ok(Self { slots, next: 1, acked: 0, sent: vec![(0, 0); layout.depth as usize] })
    }

    pub(super) fn has_credit(&self) -> bool {
        self.next - self.acked <= u64::from(self.slots.depth)
    }

    pub(super) fn payload(&self) -> *mut u8 {
        self.slots.payload(self.next)
    }

    /// Writes the header of the next message.
    pub(super) fn write_header(&mut self, header: MessageHeader) {
        let at = self.slots.header(self.next);
        // SAFETY: the slot is free: its last message was released, so that the adapter does not
        // read it any more.
        unsafe { at.write(header) };
    }

    /// Where the header and the payload of the next message lie, and where they go.
    pub(super) fn parts(&self, grant: RemoteMemory, len: usize) -> (MessagePart, MessagePart) {
        let (key, header) = (self.slots.region.local_key(), self.slots.header(self.next));
        let offset = self.slots.offset(self.next) + PREFIX_BYTES;
        let to =
            |offset: usize| RemoteMemory { address: grant.address + offset as u64, key: grant.key };
        let part = |start: *const u8, len: usize, offset| MessagePart {
            from: LocalMemory { start, len: len as u32, key },
            to: to(offset),
        };
        (
            part(header.cast(), HEADER_BYTES, offset - HEADER_BYTES),
            part(self.payload(), len, offset),
        )
    }

    /// The next message was sent, by the work request of that number.
    pub(super) fn advance(&mut self, len: usize, request: u64) -> Sequence {
        let index = ((self.next - 1) % u64::from(self.slots.depth)) as usize;
        self.sent[index] = (len, request);
        self.next += 1;
        self.next - 1
    }

    /// Handles a release of all messages up to `ack`. Returns whether that is news; `None` if it
    /// releases a message that was not sent.
    pub(super) fn acknowledge(&mut self, ack: u64) -> Option<bool> {
        if ack >= self.next {
            return None;
        }
        let is_news = ack > self.acked;
        self.acked = self.acked.max(ack);
        Some(is_news)
    }

    /// The release that is meant by its lowest 16 bits. It is no earlier than the last one.
    pub(super) fn whole_ack(&self, low: u16) -> u64 {
        self.acked + u64::from(low.wrapping_sub(self.acked as u16))
    }

    /// The number and the bytes of the messages that are not known to be in memory of the peer:
    /// they are not released, and their work requests are later than `completed`.
    pub(super) fn under_way(&self, completed: u64) -> (u64, u64) {
        let depth = u64::from(self.slots.depth);
        let all = (self.acked + 1..self.next).map(|at| self.sent[((at - 1) % depth) as usize]);
        let late = all.filter(|(_, request)| *request > completed);
        late.fold((0, 0), |(count, bytes), (len, _)| (count + 1, bytes + len as u64))
    }
}

/// The receiving end of a link.
#[derive(Debug)]
pub(super) struct ReceiveRing {
    slots: SlotMemory,
    /// Sequence of the first message that is not released.
    pub(super) next: Sequence,
    /// Sequence of the last message that has arrived.
    arrived: Sequence,
    /// For each slot, length and tag of its message.
    messages: Vec<(usize, u32)>,
    slot_bytes: usize,
    /// The last release that the peer was told of.
    pub(super) acked_to_peer: Sequence,
    /// How many messages more than were released the next release says, for tests.
    pub(super) ack_excess: u64,
}

impl ReceiveRing {
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        layout: &InboxLayout,
        relaxed: bool,
    ) -> Result<Self, RegistrationError> {
        let slots = SlotMemory::new(domain, layout, MemoryAccess::RemoteWrite, relaxed)?;
        Ok(Self {
            slots,
            next: 1,
            arrived: 0,
            messages: vec![(0, 0); layout.depth as usize],
            slot_bytes: layout.slot_bytes,
            acked_to_peer: 0,
            ack_excess: 0,
        })
    }

    /// What the sender needs to write to the slots.
    pub(super) fn grant(&self) -> RemoteMemory {
        let address = self.slots.memory.start().addr() as u64;
        RemoteMemory { address, key: self.slots.region.remote_key() }
    }

    /// A message has arrived whose sequence ends in `low`, of which the last write had `bytes`
    /// bytes. Returns the release in its header.
    ///
    /// # Errors
    /// No correct peer sends it.
    pub(super) fn arrive(
        &mut self,
        channel: u16,
        low: u16,
        bytes: usize,
    ) -> Result<u64, &'static str> {
        let sequence = self.arrived + 1;
        if sequence as u16 != low {
            return Err("a message out of its sequence");
        }
        if sequence >= self.next + u64::from(self.slots.depth) {
            return Err("a message beyond its credits");
        }
        // SAFETY: the header lies in a slot of this ring. The peer may write it at any time, so
        // that it is read once; all bytes are valid headers.
        let header = unsafe { ptr::read_volatile(self.slots.header(sequence)) };
        let len = header.len as usize;
        if header.mark != HEADER_MARK || header.channel != u32::from(channel) {
            return Err("a message with a damaged header");
        }
        if header.sequence != sequence {
            return Err("a message with another sequence in its header");
        }
        if len > self.slot_bytes || bytes != HEADER_BYTES && bytes != HEADER_BYTES + len {
            return Err("a message whose length does not fit");
        }
        self.arrived = sequence;
        let index = ((sequence - 1) % u64::from(self.slots.depth)) as usize;
        self.messages[index] = (len, header.tag);
        Ok(header.ack)
    }

    /// Address, length and tag of the first message that is not released, if it has arrived.
    pub(super) fn first(&self) -> Option<(*const u8, usize, u32)> {
        (self.next <= self.arrived).then(|| {
            let index = ((self.next - 1) % u64::from(self.slots.depth)) as usize;
            let (len, tag) = self.messages[index];
            (self.slots.payload(self.next).cast_const(), len, tag)
        })
    }

    /// Number of releases that the peer was not told of.
    pub(super) fn unacked(&self) -> u64 {
        self.next - 1 - self.acked_to_peer + self.ack_excess
    }

    /// The release to tell the peer now, which counts as told.
    pub(super) fn take_ack(&mut self) -> u64 {
        self.acked_to_peer = self.next - 1;
        self.acked_to_peer + std::mem::take(&mut self.ack_excess)
    }
}

/// Texts of errors that live as long as the process, each once.
#[derive(Default)]
struct KeptTexts(HashSet<&'static str>);

impl KeptTexts {
    /// Most texts. There are few, because they name ranks and devices and no numbers that grow; but
    /// some have the words of a peer, which may be malicious.
    const MOST: usize = 256;

    /// The text, if there is room for it.
    fn keep(&mut self, text: String) -> Result<&'static str, String> {
        if let Some(kept) = self.0.get(text.as_str()) {
            return Ok(kept);
        }
        if self.0.len() == Self::MOST {
            return Err(text);
        }
        let kept: &'static str = text.leak();
        self.0.insert(kept);
        Ok(kept)
    }
}

/// The text of an error for which `LinkError`, which is copied, needs a static one.
pub(super) fn kept_text(text: String) -> &'static str {
    static TEXTS: PerProcess<Mutex<KeptTexts>> = PerProcess::new();
    let kept = TEXTS.get().lock().unwrap_or_else(PoisonError::into_inner).keep(text);
    kept.unwrap_or_else(|text| {
        log::warn!("an RDMA connection failed: {text}");
        "there were too many reasons to keep this one; see the log of this rank"
    })
}

/// The error of a connection to `peer` over RDMA.
pub(super) fn rdma_error(peer: Rank, why: String) -> LinkError {
    LinkError::Rdma { peer, why: kept_text(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_make_this_process_keep_any_number_of_texts() {
        let mut texts = KeptTexts::default();
        let kept = |texts: &mut KeptTexts, n: usize| texts.keep(format!("reason {n}"));
        for n in 0..KeptTexts::MOST {
            assert_eq!(kept(&mut texts, n), Ok(&*format!("reason {n}")));
        }
        for n in KeptTexts::MOST..2 * KeptTexts::MOST {
            assert_eq!(kept(&mut texts, n), Err(format!("reason {n}")));
        }
        assert_eq!(kept(&mut texts, 7), Ok("reason 7"));
        assert_eq!(texts.0.len(), KeptTexts::MOST);
    }
}
