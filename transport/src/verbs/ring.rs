//! The slots of one link, in registered memory: those to which the peer writes, and those from
//! which the adapter sends.
//!
//! A slot has 64 bytes in front of the payload, of which the last 32 are the header, so that one
//! write carries both.

use std::ptr;
use std::sync::Arc;

use maypole_verbs::{LocalMemory, MemoryAccess, MemoryRegion, RemoteMemory};

use super::domain::VerbsDomain;
use crate::Sequence;
use crate::error::LinkError;
use crate::inbox::InboxLayout;
use crate::memory::Mapping;

/// Bytes in front of the payload.
const PREFIX_BYTES: usize = 64;
/// Bytes of the header, which is the end of the prefix.
pub(super) const HEADER_BYTES: usize = 32;
/// Marks the header of a message.
const MESSAGE_MARK: u32 = 0x6d70_7601;
/// Marks a header that is only a release. It travels over TCP alone.
const RELEASE_MARK: u32 = 0x6d70_7602;

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
    /// [`MESSAGE_MARK`] or [`RELEASE_MARK`].
    pub(super) mark: u32,
}

const _: () = assert!(size_of::<MessageHeader>() == HEADER_BYTES);

impl MessageHeader {
    pub(super) fn new(channel: u16, sequence: Sequence, ack: u64, len: u32, tag: u32) -> Self {
        Self { sequence, ack, len, tag, channel: channel.into(), mark: MESSAGE_MARK }
    }

    /// A release alone.
    pub(super) fn release(channel: u16, ack: u64) -> Self {
        Self { mark: RELEASE_MARK, ..Self::new(channel, 0, ack, 0, 0) }
    }

    pub(super) fn is_release(&self) -> bool {
        self.mark == RELEASE_MARK
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&self.sequence.to_ne_bytes());
        out[8..16].copy_from_slice(&self.ack.to_ne_bytes());
        for (to, word) in out[16..].chunks_mut(4).zip([self.len, self.tag, self.channel, self.mark])
        {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let long = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        Self {
            sequence: long(0),
            ack: long(8),
            len: word(16),
            tag: word(20),
            channel: word(24),
            mark: word(28),
        }
    }
}

/// Memory of `depth` slots, registered with the ports where that was possible.
#[derive(Debug)]
struct SlotMemory {
    // Dropped before the memory.
    regions: Vec<Option<MemoryRegion>>,
    memory: Mapping,
    stride: usize,
    depth: u32,
}

impl SlotMemory {
    /// Also returns why the memory could not be registered with some ports.
    fn new(
        domains: &[Arc<VerbsDomain>],
        layout: &InboxLayout,
        access: MemoryAccess,
    ) -> Result<(Self, Vec<String>), LinkError> {
        let stride = PREFIX_BYTES + layout.slot_bytes;
        let bytes = stride * layout.depth as usize;
        let memory = Mapping::private(bytes)?;
        let start = memory.start();
        let (mut regions, mut failed) = (Vec::new(), Vec::new());
        for domain in domains {
            let relaxed = access == MemoryAccess::RemoteWrite && domain.config.relaxed_ordering;
            // SAFETY: the memory is mapped as long as `self`, in which the regions are dropped
            // first. The peer is told when it may write, and what it writes is read by volatile
            // reads or after its message has arrived.
            let region =
                unsafe { MemoryRegion::register(&domain.memory, start, bytes, access, relaxed) };
            if let Err(error) = &region {
                failed.push(format!(
                    "{bytes} bytes of memory cannot be registered with {}: {error}; check the \
                     limit of locked memory (ulimit -l)",
                    domain.device()
                ));
            }
            regions.push(region.ok());
        }
        Ok((Self { regions, memory, stride, depth: layout.depth }, failed))
    }

    fn index(&self, sequence: Sequence) -> usize {
        ((sequence - 1) % u64::from(self.depth)) as usize
    }

    fn offset(&self, sequence: Sequence) -> usize {
        self.index(sequence) * self.stride
    }

    fn payload(&self, sequence: Sequence) -> *mut u8 {
        self.memory.start().wrapping_add(self.offset(sequence) + PREFIX_BYTES)
    }

    fn header(&self, sequence: Sequence) -> *mut MessageHeader {
        self.payload(sequence).wrapping_sub(HEADER_BYTES).cast()
    }
}

/// A part of a message, in memory of the sender and of the receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessagePart {
    pub(super) from: LocalMemory,
    pub(super) to: RemoteMemory,
}

/// Where a message is that was sent and is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessagePlace {
    /// It waits for a path.
    Waiting,
    /// It was posted on a path, by the last of its work requests with this number.
    Path { path: usize, attempt: u32, queue: usize, request: u64 },
    /// It travels over TCP.
    Tcp,
    /// It has arrived, as the peer has said when its path was lost.
    Arrived,
}

/// A message that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentMessage {
    pub(super) len: usize,
    pub(super) place: MessagePlace,
}

/// The sending end of a link.
#[derive(Debug)]
pub(super) struct SendRing {
    slots: SlotMemory,
    /// Sequence of the next message.
    pub(super) next: Sequence,
    /// Sequence of the last message that is released.
    pub(super) acked: Sequence,
    /// For each slot, its message.
    sent: Vec<SentMessage>,
}

impl SendRing {
    pub(super) fn new(
        domains: &[Arc<VerbsDomain>],
        layout: &InboxLayout,
    ) -> Result<(Self, Vec<String>), LinkError> {
        let (slots, failed) = SlotMemory::new(domains, layout, MemoryAccess::LocalRead)?;
        let none = SentMessage { len: 0, place: MessagePlace::Waiting };
        let sent = vec![none; layout.depth as usize];
        Ok((Self { slots, next: 1, acked: 0, sent }, failed))
    }

    pub(super) fn has_credit(&self) -> bool {
        self.next - self.acked <= u64::from(self.slots.depth)
    }

    pub(super) fn is_registered(&self, domain: usize) -> bool {
        self.slots.regions.get(domain).is_some_and(Option::is_some)
    }

    /// The memory of a message.
    pub(super) fn payload(&self, sequence: Sequence) -> *mut u8 {
        self.slots.payload(sequence)
    }

    /// Writes the header of the next message.
    pub(super) fn write_header(&mut self, header: MessageHeader) {
        let at = self.slots.header(self.next);
        // SAFETY: the slot is free: its last message was released, so that the adapter does not
        // read it any more.
        unsafe { at.write(header) };
    }

    /// The header of a message that was sent.
    pub(super) fn header(&self, sequence: Sequence) -> MessageHeader {
        // SAFETY: it was written before the message was sent, and is not written until its release.
        unsafe { self.slots.header(sequence).read() }
    }

    /// Where the header and the payload of a message lie for this port, and where they go. `None`
    /// if the memory is not registered with the port.
    pub(super) fn parts(
        &self,
        domain: usize,
        grant: RemoteMemory,
        sequence: Sequence,
    ) -> Option<(MessagePart, MessagePart)> {
        let key = self.slots.regions.get(domain)?.as_ref()?.local_key();
        let (payload, len) = (self.payload(sequence), self.sent[self.slots.index(sequence)].len);
        let offset = self.slots.offset(sequence) + PREFIX_BYTES;
        let part = |start: *const u8, len: usize, offset: usize| MessagePart {
            from: LocalMemory { start, len: len as u32, key },
            to: RemoteMemory { address: grant.address + offset as u64, key: grant.key },
        };
        let header = self.slots.header(sequence);
        Some((part(header.cast(), HEADER_BYTES, offset - HEADER_BYTES), part(payload, len, offset)))
    }

    /// The next message is sent.
    pub(super) fn advance(&mut self, len: usize) -> Sequence {
        let index = self.slots.index(self.next);
        self.sent[index] = SentMessage { len, place: MessagePlace::Waiting };
        self.next += 1;
        self.next - 1
    }

    pub(super) fn sent(&self, sequence: Sequence) -> SentMessage {
        self.sent[self.slots.index(sequence)]
    }

    pub(super) fn set_place(&mut self, sequence: Sequence, place: MessagePlace) {
        let index = self.slots.index(sequence);
        self.sent[index].place = place;
    }

    /// The messages that are not released.
    pub(super) fn unreleased(&self) -> impl Iterator<Item = (Sequence, SentMessage)> + '_ {
        (self.acked + 1..self.next).map(|sequence| (sequence, self.sent(sequence)))
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

    /// The release that is meant by its lowest 16 bits, which may be older than the last one if it
    /// came over another path.
    pub(super) fn whole_ack(&self, low: u16) -> u64 {
        let news = low.wrapping_sub(self.acked as u16) as i16;
        self.acked + u64::try_from(news).unwrap_or(0)
    }
}

/// The receiving end of a link. Messages may arrive in any order, because they travel over several
/// paths.
#[derive(Debug)]
pub(super) struct ReceiveRing {
    slots: SlotMemory,
    /// Sequence of the first message that is not released.
    pub(super) next: Sequence,
    /// For each slot, length and tag of its message, if it has arrived and is not released.
    messages: Vec<Option<(usize, u32)>>,
    slot_bytes: usize,
    /// The last release that the peer was told of.
    pub(super) acked_to_peer: Sequence,
    /// How many messages more than were released the next release says, for tests.
    pub(super) ack_excess: u64,
}

impl ReceiveRing {
    pub(super) fn new(
        domains: &[Arc<VerbsDomain>],
        layout: &InboxLayout,
    ) -> Result<(Self, Vec<String>), LinkError> {
        let (slots, failed) = SlotMemory::new(domains, layout, MemoryAccess::RemoteWrite)?;
        let ring = Self {
            slots,
            next: 1,
            messages: vec![None; layout.depth as usize],
            slot_bytes: layout.slot_bytes,
            acked_to_peer: 0,
            ack_excess: 0,
        };
        Ok((ring, failed))
    }

    /// What the sender needs to write to the slots: the address, and a key for each port.
    pub(super) fn grant(&self) -> (u64, Vec<u32>) {
        let address = self.slots.memory.start().addr() as u64;
        let key = |region: &Option<MemoryRegion>| region.as_ref().map_or(0, |it| it.remote_key());
        (address, self.slots.regions.iter().map(key).collect())
    }

    /// A message was written whose sequence ends in `low`, and of which the last write had `bytes`
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
        let sequence = self.next + u64::from(low.wrapping_sub(self.next as u16));
        if sequence >= self.next + u64::from(self.slots.depth) {
            return Err("a message out of its sequence or beyond its credits");
        }
        // SAFETY: the header lies in a slot of this ring. The peer may write it at any time, so
        // that it is read once; all bytes are valid headers.
        let header = unsafe { ptr::read_volatile(self.slots.header(sequence)) };
        self.take(channel, sequence, &header)?;
        let len = header.len as usize;
        if bytes != HEADER_BYTES && bytes != HEADER_BYTES + len {
            return Err("a message whose length does not fit");
        }
        Ok(header.ack)
    }

    /// Takes a message whose payload is in its slot.
    fn take(
        &mut self,
        channel: u16,
        sequence: Sequence,
        header: &MessageHeader,
    ) -> Result<(), &'static str> {
        let index = self.slots.index(sequence);
        if header.mark != MESSAGE_MARK || header.channel != u32::from(channel) {
            return Err("a message with a damaged header");
        }
        if header.sequence != sequence {
            return Err("a message with another sequence in its header");
        }
        if header.len as usize > self.slot_bytes {
            return Err("a message whose length does not fit");
        }
        if self.messages[index].is_some() {
            return Err("a message that has arrived before");
        }
        self.messages[index] = Some((header.len as usize, header.tag));
        Ok(())
    }

    /// Takes a message that has come over TCP.
    ///
    /// # Errors
    /// No correct peer sends it.
    pub(super) fn arrive_over_tcp(
        &mut self,
        channel: u16,
        header: &MessageHeader,
        payload: &[u8],
    ) -> Result<(), &'static str> {
        let window = self.next..self.next + u64::from(self.slots.depth);
        if !window.contains(&header.sequence) || payload.len() != header.len as usize {
            return Err("a message over TCP that does not fit");
        }
        self.take(channel, header.sequence, header)?;
        let to = self.slots.payload(header.sequence);
        // SAFETY: the slot is free, because its last message is released, and `take` has checked
        // the length. The peer writes no message twice.
        unsafe { to.copy_from_nonoverlapping(payload.as_ptr(), payload.len()) };
        Ok(())
    }

    /// Address, length and tag of the first message that is not released, if it has arrived.
    pub(super) fn first(&self) -> Option<(*const u8, usize, u32)> {
        let (len, tag) = self.messages[self.slots.index(self.next)]?;
        Some((self.slots.payload(self.next).cast_const(), len, tag))
    }

    /// Releases the first message.
    pub(super) fn release(&mut self) {
        let index = self.slots.index(self.next);
        self.messages[index] = None;
        self.next += 1;
    }

    /// The last message that is released, and how much later those are that have arrived.
    pub(super) fn arrivals(&self) -> (u64, Vec<u16>) {
        let released = self.next - 1;
        let later = 1..=u64::from(self.slots.depth);
        let later = later
            .filter(|offset| self.messages[self.slots.index(released + offset)].is_some())
            .map(|offset| offset as u16);
        (released, later.collect())
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
