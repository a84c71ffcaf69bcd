//! The inbox of a rank: the memory to which its peers write.
//!
//! An inbox is one anonymous file. It starts with the rank's [`RankHeader`]. A *region* for each
//! rank of the communicator follows, which only the owner and that rank access. A region holds, for
//! each channel,
//!
//! * the words: two ack words (in which the region's rank acknowledges messages of the owner), the
//!   LL ring and the slot headers (of messages to the owner);
//! * the memory of the slots, which starts at a page boundary.
//!
//! The file is as long as all ranks would need, but only touched pages take memory. A rank maps the
//! header and its own region of a peer's inbox.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::ll::{AckWord, LlReceiver, LlRing, LlSender};
use crate::memory::{self, Mapping, MappingAccess};
use crate::random::random_bytes;
use crate::rank_header::{MAGIC, RankHeader, RankIdentity, RankPair};
use crate::slots::{SlotHeader, SlotReceiver, SlotRingMemory, SlotSender, ring_bytes};
use crate::sync::{AtomicU64, Ordering};

/// The shape of every inbox of a communicator. All ranks must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLayout {
    /// The size of the communicator.
    pub nranks: u32,
    /// Number of links from a rank to another.
    pub channels: u16,
    /// Bytes of a slot; a multiple of 64.
    pub slot_bytes: usize,
    /// Number of messages per link that may be under way.
    pub depth: u32,
}

const ACK_WORDS_BYTES: usize = 2 * size_of::<AckWord>();

impl InboxLayout {
    /// Bytes of the whole file.
    ///
    /// # Errors
    /// [`LinkError::Misuse`] if an inbox cannot have this shape.
    pub fn bytes(&self) -> Result<usize, LinkError> {
        let wrong = |what| Err(LinkError::Misuse { what });
        if self.nranks == 0 || self.channels == 0 || self.depth == 0 || self.slot_bytes == 0 {
            return wrong("an inbox needs at least one rank, one channel and one slot");
        }
        if !self.slot_bytes.is_multiple_of(64) {
            return wrong("the bytes of a slot must be a multiple of 64");
        }
        let total = |slots: usize| {
            // All parts but the slots are small for any reasonable depth.
            let words = (self.depth as usize).checked_mul(64)?.checked_add(1 << 16)?;
            let channel = slots.checked_add(words)?.checked_mul(self.channels.into())?;
            channel.checked_mul(self.nranks as usize)?.checked_add(1 << 20)
        };
        match self.slot_bytes.checked_mul(self.depth as usize + 1).and_then(total) {
            Some(bytes) if bytes <= 1 << 46 => {}
            _ => {
                return wrong(
                    "an inbox of this shape exceeds the address space; use smaller or fewer slots",
                );
            }
        }
        Ok(Self::header_bytes() + self.nranks as usize * self.region_bytes())
    }

    fn header_bytes() -> usize {
        size_of::<RankHeader>().next_multiple_of(memory::page_size())
    }

    fn words_bytes(&self) -> usize {
        let headers = self.depth as usize * size_of::<SlotHeader>();
        (ACK_WORDS_BYTES + size_of::<LlRing>() + headers).next_multiple_of(128)
    }

    fn slots_bytes(&self) -> usize {
        ring_bytes(self.slot_bytes, self.depth).next_multiple_of(memory::page_size())
    }

    /// The words of all channels lie together instead of on pages of their own. That is small and
    /// spreads them over the cache sets.
    fn slots_offset(&self) -> usize {
        (self.words_bytes() * usize::from(self.channels)).next_multiple_of(memory::page_size())
    }

    fn region_bytes(&self) -> usize {
        self.slots_offset() + self.slots_bytes() * usize::from(self.channels)
    }

    fn region_offset(&self, source: Rank) -> usize {
        Self::header_bytes() + source as usize * self.region_bytes()
    }

    fn identity(&self, rank: Rank, pid: u32, word: u64) -> RankIdentity {
        RankIdentity {
            magic: MAGIC,
            rank,
            nranks: self.nranks,
            channels: self.channels.into(),
            depth: self.depth,
            slot_bytes: self.slot_bytes as u64,
            pid,
            word,
        }
    }
}

/// The addresses of the parts of one channel in a region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkMemory {
    /// For LL messages that the inbox's owner sends.
    pub(crate) ll_ack: *const AckWord,
    /// For slots that the inbox's owner sends.
    pub(crate) slot_ack: *const AckWord,
    pub(crate) ll_ring: *const LlRing,
    pub(crate) headers: *const SlotHeader,
    pub(crate) slots: *mut u8,
}

/// The memory that one other rank and the owner of an inbox share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboxRegion {
    start: *mut u8,
    layout: InboxLayout,
}

impl InboxRegion {
    pub(crate) fn link(&self, channel: u16) -> LinkMemory {
        debug_assert!(channel < self.layout.channels);
        let words = self.start.wrapping_add(usize::from(channel) * self.layout.words_bytes());
        let ll_ring = words.wrapping_add(ACK_WORDS_BYTES);
        let slots = self.layout.slots_offset() + usize::from(channel) * self.layout.slots_bytes();
        LinkMemory {
            ll_ack: words.cast(),
            slot_ack: words.wrapping_add(size_of::<AckWord>()).cast(),
            ll_ring: ll_ring.cast(),
            headers: ll_ring.wrapping_add(size_of::<LlRing>()).cast(),
            slots: self.start.wrapping_add(slots),
        }
    }
}

/// A rank's own inbox.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// None if the system forbids anonymous files; then other processes cannot map the inbox.
    file: Option<OwnedFd>,
    memory: Mapping,
    layout: InboxLayout,
}

impl Inbox {
    pub(crate) fn new(rank: Rank, layout: InboxLayout) -> Result<Self, LinkError> {
        let bytes = layout.bytes()?;
        let (file, memory) = match memory::create_memfd(bytes) {
            Ok(file) => {
                if memory::overcommit_is_off() {
                    memory::allocate_pages(file.as_fd(), 0, InboxLayout::header_bytes())?;
                }
                let memory = Mapping::new(file.as_fd(), 0, bytes, MappingAccess::ReadWrite)?;
                (Some(file), memory)
            }
            Err(error) if memory::is_forbidden(&error) => {
                log::info!("rank {rank} shares no memory with other processes: {error}");
                (None, Mapping::private(bytes)?)
            }
            Err(error) => return Err(error),
        };
        let word = u64::from_le_bytes(random_bytes()?);
        let header = RankHeader::new(layout.identity(rank, std::process::id(), word));
        // SAFETY: the mapping has room for a header at its start, and no other rank has it yet.
        unsafe { memory.start().cast::<RankHeader>().write(header) };
        Ok(Self { file, memory, layout })
    }

    /// The file that peers map; None if other processes cannot map the inbox.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Prepares the region of rank `source`. If the system counts all memory that could be touched,
    /// this takes the memory, so that too little is an error here and no signal at a later access.
    pub(crate) fn prepare_region(&self, source: Rank) -> Result<(), LinkError> {
        if memory::overcommit_is_off() { self.allocate_region(source) } else { Ok(()) }
    }

    fn allocate_region(&self, source: Rank) -> Result<(), LinkError> {
        let Some(file) = self.file() else { return Ok(()) };
        let layout = &self.layout;
        memory::allocate_pages(file, layout.region_offset(source), layout.region_bytes())
    }

    /// Bytes that were touched by now; only these take memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.file().map_or_else(|| self.memory.resident_bytes(), memory::allocated_bytes)
    }

    pub(crate) fn header(&self) -> &RankHeader {
        // SAFETY: `new` wrote a header there, which consists of atomics and constants.
        unsafe { &*self.memory.start().cast() }
    }

    pub(crate) fn region(&self, source: Rank) -> InboxRegion {
        debug_assert!(source < self.layout.nranks);
        let start = self.memory.start().wrapping_add(self.layout.region_offset(source));
        InboxRegion { start, layout: self.layout }
    }
}

/// A peer's inbox, as this rank sees it.
#[derive(Debug)]
pub(crate) enum PeerInbox {
    /// The peer is a thread of this process.
    Local(Arc<Inbox>),
    /// The peer is in another process: its header, and this rank's region.
    Shm { header: Mapping, region: Mapping, layout: InboxLayout },
}

impl PeerInbox {
    /// Maps the parts that rank `me` needs of the inbox that `peer` sent.
    ///
    /// # Errors
    /// The file is not an inbox of `peer` with this layout, or cannot be mapped.
    pub(crate) fn map(
        file: BorrowedFd<'_>,
        me: Rank,
        peer: Rank,
        layout: InboxLayout,
    ) -> Result<Self, LinkError> {
        let corrupt = |why| Err(LinkError::Corrupt { peer, why });
        // Unless the file is long enough, not even the header may be accessed.
        if !memory::is_sealed(file, InboxLayout::header_bytes()) {
            return corrupt("the file that it sent is not an inbox");
        }
        let access = MappingAccess::ReadWrite;
        let header = Mapping::new(file, 0, InboxLayout::header_bytes(), access)?;
        // SAFETY: the mapping has room for a header, and all bytes are a valid header.
        let theirs = unsafe { (*header.start().cast::<RankHeader>()).identity() };
        if theirs.magic != MAGIC {
            return corrupt(
                "its inbox has another format; does it use another version of the library?",
            );
        }
        if theirs != layout.identity(peer, theirs.pid, theirs.word) {
            return corrupt(
                "its inbox has another shape; were the two ranks configured differently?",
            );
        }
        if !memory::is_sealed(file, layout.bytes()?) {
            return corrupt("its inbox is shorter than it says");
        }
        let region = Mapping::new(file, layout.region_offset(me), layout.region_bytes(), access)?;
        Ok(Self::Shm { header, region, layout })
    }

    pub(crate) fn header(&self) -> &RankHeader {
        match self {
            Self::Local(inbox) => inbox.header(),
            // SAFETY: `map` has checked it; it consists of atomics and constants.
            Self::Shm { header, .. } => unsafe { &*header.start().cast() },
        }
    }

    /// The region that rank `me` and the owner share.
    pub(crate) fn region(&self, me: Rank) -> InboxRegion {
        match self {
            Self::Local(inbox) => inbox.region(me),
            Self::Shm { region, layout, .. } => {
                InboxRegion { start: region.start(), layout: *layout }
            }
        }
    }

    /// Writes a random number to a random word that this rank shares with the owner, for tests of
    /// the owner.
    pub(crate) fn misbehave(&self, random: &mut dyn FnMut() -> u64) {
        let Self::Shm { header, region, layout } = self else { return };
        if random().is_multiple_of(4) {
            let channel = random() % u64::from(layout.channels);
            let region = InboxRegion { start: region.start(), layout: *layout };
            // SAFETY: the ring lies within a mapping that this rank may write to, and consists of
            // atomics and cells.
            return unsafe { &*region.link(channel as u16).ll_ring }.misbehave(random);
        }
        let words = layout.words_bytes() * (1 + random() as usize % usize::from(layout.channels));
        let (start, bytes) = match random() % 64 {
            // The words of one channel: acknowledgements, lines of LL messages, headers of slots.
            0..32 => (region.start().wrapping_add(words - layout.words_bytes()), ACK_WORDS_BYTES),
            32..62 => (region.start(), words),
            62 => (region.start(), layout.region_bytes()),
            _ => (header.start(), size_of::<RankHeader>()),
        };
        let word = start.wrapping_add(8 * (random() as usize % (bytes / 8))).cast::<AtomicU64>();
        // SAFETY: the word lies within a mapping that this rank may write to; all processes access
        // it by atomic operations, or believe nothing that it holds.
        let word = unsafe { &*word };
        let number = match random() % 6 {
            0 => random() % 16,
            1 => (random() % 16) << 32 | random() >> 32,
            2 => u64::MAX,
            3 => word.load(Ordering::Relaxed) ^ 1 << (random() % 64),
            4 => word.load(Ordering::Relaxed).wrapping_add(1),
            _ => random(),
        };
        word.store(number, Ordering::Release);
    }

    fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }
}

/// Both ends that a rank has of the links to and from a peer, on one channel.
pub(crate) struct InboxEnds {
    pub(crate) slot_sender: SlotSender,
    pub(crate) slot_receiver: SlotReceiver,
    pub(crate) ll_sender: LlSender,
    pub(crate) ll_receiver: LlReceiver,
}

impl InboxEnds {
    /// The ends of the rank with inbox `own` towards rank `peer` with inbox `theirs`.
    ///
    /// # Safety
    /// The ends of this pair of ranks and channel were not made before.
    pub(crate) unsafe fn new(
        own: &Arc<Inbox>,
        theirs: &Arc<PeerInbox>,
        peer: Rank,
        channel: u16,
    ) -> Self {
        let rank = own.header().identity().rank;
        let InboxLayout { depth, slot_bytes, .. } = own.layout;
        let same_process = theirs.is_local();
        // Messages lie in the inbox of their receiver and are acknowledged in that of their sender.
        let own_memory = own.region(peer).link(channel);
        let peer_memory = theirs.region(rank).link(channel);
        let ring = |data: &LinkMemory, ack: &LinkMemory| SlotRingMemory {
            headers: data.headers,
            slots: data.slots,
            slot_bytes,
            depth,
            ack: ack.slot_ack,
            same_process,
        };
        let (own_header, peer_header) = (&raw const *own.header(), &raw const *theirs.header());
        let keep: Arc<(Arc<Inbox>, Arc<PeerInbox>)> = Arc::new((own.clone(), theirs.clone()));
        // SAFETY: `keep` keeps both inboxes alive, in which all headers and words lie. The region
        // is fresh, because the caller promised that these are its first ends.
        unsafe {
            let pair = RankPair::new(own_header, peer_header, peer, keep);
            let slot_sender = SlotSender::new(ring(&peer_memory, &own_memory), pair.clone());
            let slot_receiver = SlotReceiver::new(ring(&own_memory, &peer_memory), pair.clone());
            let ll_sender = LlSender::new(peer_memory.ll_ring, own_memory.ll_ack, pair.clone());
            let ll_receiver = LlReceiver::new(own_memory.ll_ring, peer_memory.ll_ack, pair);
            Self { slot_sender, slot_receiver, ll_sender, ll_receiver }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: InboxLayout = InboxLayout { nranks: 3, channels: 2, slot_bytes: 4160, depth: 3 };

    #[test]
    fn no_two_parts_overlap() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let base = inbox.memory.start().addr();
        let mut spans = vec![(base, size_of::<RankHeader>())];
        for source in 0..3 {
            for channel in 0..2 {
                let link = inbox.region(source).link(channel);
                assert_eq!(link.slots.addr() % memory::page_size(), 0);
                spans.push((link.ll_ack.addr(), 128));
                spans.push((link.slot_ack.addr(), 128));
                spans.push((link.ll_ring.addr(), size_of::<LlRing>()));
                spans.push((link.headers.addr(), 3 * size_of::<SlotHeader>()));
                spans.push((link.slots.addr(), ring_bytes(LAYOUT.slot_bytes, LAYOUT.depth)));
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        let (last, bytes) = spans[spans.len() - 1];
        assert!(last + bytes <= base + LAYOUT.bytes().unwrap());
    }

    #[test]
    fn a_region_can_be_allocated_before_it_is_touched() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let untouched = inbox.resident_bytes();
        inbox.allocate_region(2).unwrap();
        assert_eq!(inbox.resident_bytes(), untouched + LAYOUT.region_bytes());
    }

    #[test]
    fn a_peer_sees_the_same_memory() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let peer = PeerInbox::map(inbox.file().unwrap(), 2, 1, LAYOUT).unwrap();
        let (mapped, own) = (peer.region(2).link(1), inbox.region(2).link(1));
        // SAFETY: both are the first byte of the same slot, used only by this thread.
        unsafe {
            mapped.slots.write(77);
            assert_eq!(own.slots.read(), 77);
        }
    }

    #[test]
    fn another_shape_or_rank_is_refused() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let other = InboxLayout { depth: 4, ..LAYOUT };
        for (peer, layout) in [(1, other), (0, LAYOUT)] {
            let error = PeerInbox::map(inbox.file().unwrap(), 2, peer, layout).unwrap_err();
            assert!(matches!(error, LinkError::Corrupt { .. }), "{error}");
        }
        let empty = memory::create_memfd(1 << 30).unwrap();
        assert!(PeerInbox::map(empty.as_fd(), 2, 1, LAYOUT).is_err());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for layout in [
            InboxLayout { depth: 0, ..LAYOUT },
            InboxLayout { slot_bytes: 100, ..LAYOUT },
            InboxLayout { slot_bytes: 1 << 50, ..LAYOUT },
            InboxLayout { depth: u32::MAX, slot_bytes: usize::MAX & !63, ..LAYOUT },
        ] {
            assert!(matches!(layout.bytes(), Err(LinkError::Misuse { .. })), "{layout:?}");
        }
    }
}
