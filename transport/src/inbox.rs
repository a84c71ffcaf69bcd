//! The inbox of a rank: the memory that others write to.
//!
//! One anonymous file. It starts with the rank's [`RankHeader`]; then comes, for every rank of the communicator, a *region*
//! that only this rank and that one touch. A region holds for every channel
//!
//! * the words: two ack words (the region's rank acknowledges what we sent to it), the line ring and the headers of
//!   the slots (of what it sends to us);
//! * the slots, from a page boundary on.
//!
//! The file is as long as all ranks would need and costs only the pages that are touched; a rank maps of a peer's inbox
//! the header and its own region.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Rank;
use crate::error::LinkError;
use crate::ll::{AckWord, LlRing};
use crate::memory::{self, Mapping};
use crate::rank_header::{MAGIC, RankHeader, RankIdentity};
use crate::slots::SlotHeader;

/// The shape of every inbox of a communicator. All ranks must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLayout {
    /// The size of the communicator.
    pub nranks: u32,
    /// Links per ordered pair of ranks.
    pub channels: u16,
    /// Bytes of a slot; a multiple of 64.
    pub slot_bytes: usize,
    /// Slots per link.
    pub depth: u32,
}

const ACKS: usize = 2 * size_of::<AckWord>();

impl InboxLayout {
    /// Bytes of the whole file, if such an inbox can be.
    pub fn bytes(&self) -> Result<usize, LinkError> {
        let wrong = |what| Err(LinkError::Misuse { what });
        if self.nranks == 0 || self.channels == 0 || self.depth == 0 || self.slot_bytes == 0 {
            return wrong("an inbox needs a rank, a channel and a slot at least");
        }
        if !self.slot_bytes.is_multiple_of(64) {
            return wrong("the bytes of a slot must be a multiple of 64");
        }
        let total = |slots: usize| {
            // Everything but the slots is small for any depth that makes sense.
            let words = (self.depth as usize).checked_mul(64)?.checked_add(1 << 16)?;
            let channel = slots.checked_add(words)?.checked_mul(self.channels.into())?;
            channel.checked_mul(self.nranks as usize)?.checked_add(1 << 20)
        };
        match self.slot_bytes.checked_mul(self.depth as usize).and_then(total) {
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
        size_of::<RankHeader>().next_multiple_of(memory::page())
    }

    fn words_bytes(&self) -> usize {
        let headers = self.depth as usize * size_of::<SlotHeader>();
        (ACKS + size_of::<LlRing>() + headers).next_multiple_of(128)
    }

    fn slots_bytes(&self) -> usize {
        (self.slot_bytes * self.depth as usize).next_multiple_of(memory::page())
    }

    /// The words of all channels lie together and not on pages of their own: small, and spread over the caches' sets.
    fn slots_offset(&self) -> usize {
        (self.words_bytes() * usize::from(self.channels)).next_multiple_of(memory::page())
    }

    fn region_bytes(&self) -> usize {
        self.slots_offset() + self.slots_bytes() * usize::from(self.channels)
    }

    fn region_offset(&self, source: Rank) -> usize {
        Self::header_bytes() + source as usize * self.region_bytes()
    }

    fn identity(&self, rank: Rank, pid: u32) -> RankIdentity {
        RankIdentity {
            magic: MAGIC,
            rank,
            nranks: self.nranks,
            channels: self.channels.into(),
            depth: self.depth,
            slot_bytes: self.slot_bytes as u64,
            pid,
        }
    }
}

/// Where the parts of one link lie in a region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkMemory {
    /// Of the lines that the region's owner sends.
    pub(crate) line_ack: *const AckWord,
    /// Of the slots that the region's owner sends.
    pub(crate) slot_ack: *const AckWord,
    pub(crate) lines: *const LlRing,
    pub(crate) headers: *const SlotHeader,
    pub(crate) slots: *mut u8,
}

/// The memory that one other rank and the owner of an inbox share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    start: *mut u8,
    layout: InboxLayout,
}

impl Region {
    pub(crate) fn link(&self, channel: u16) -> LinkMemory {
        debug_assert!(channel < self.layout.channels);
        let words = self.start.wrapping_add(usize::from(channel) * self.layout.words_bytes());
        let lines = words.wrapping_add(ACKS);
        let slots = self.layout.slots_offset() + usize::from(channel) * self.layout.slots_bytes();
        LinkMemory {
            line_ack: words.cast(),
            slot_ack: words.wrapping_add(size_of::<AckWord>()).cast(),
            lines: lines.cast(),
            headers: lines.wrapping_add(size_of::<LlRing>()).cast(),
            slots: self.start.wrapping_add(slots),
        }
    }
}

/// A rank's own inbox.
#[derive(Debug)]
pub(crate) struct Inbox {
    file: OwnedFd,
    memory: Mapping,
    layout: InboxLayout,
}

impl Inbox {
    pub(crate) fn new(rank: Rank, layout: InboxLayout) -> Result<Self, LinkError> {
        let bytes = layout.bytes()?;
        let file = memory::create(bytes)?;
        let memory = Mapping::new(file.as_fd(), 0, bytes)?;
        let header = RankHeader::new(layout.identity(rank, std::process::id()));
        // SAFETY: the mapping starts with room for a header, and nobody else has seen it yet.
        unsafe { memory.start().cast::<RankHeader>().write(header) };
        Ok(Self { file, memory, layout })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes that were ever touched; the rest costs nothing.
    pub(crate) fn resident_bytes(&self) -> usize {
        memory::held(self.file.as_fd())
    }

    pub(crate) fn header(&self) -> &RankHeader {
        // SAFETY: `new` put a header there; it consists of atomics and constants.
        unsafe { &*self.memory.start().cast() }
    }

    pub(crate) fn region(&self, source: Rank) -> Region {
        debug_assert!(source < self.layout.nranks);
        let start = self.memory.start().wrapping_add(self.layout.region_offset(source));
        Region { start, layout: self.layout }
    }
}

/// A peer's inbox as this rank sees it.
#[derive(Debug)]
pub(crate) enum PeerInbox {
    /// Of a thread of this process.
    Local(Arc<Inbox>),
    /// Of another process: its header and our region in it.
    Shm { header: Mapping, region: Mapping, layout: InboxLayout },
}

impl PeerInbox {
    /// Maps what rank `me` needs of the inbox that `peer` handed over.
    pub(crate) fn map(
        file: BorrowedFd<'_>,
        me: Rank,
        peer: Rank,
        layout: InboxLayout,
    ) -> Result<Self, LinkError> {
        let corrupt = |why| Err(LinkError::Corrupt { peer, why });
        // Before the size is known to fit, not even the header may be touched.
        if !memory::is_sealed(file, InboxLayout::header_bytes()) {
            return corrupt("what it handed over is no inbox");
        }
        let header = Mapping::new(file, 0, InboxLayout::header_bytes())?;
        // SAFETY: the mapping has room for a header, and any bytes are a valid one.
        let theirs = unsafe { (*header.start().cast::<RankHeader>()).identity() };
        if theirs.magic != MAGIC {
            return corrupt("its inbox has another format: is it another version of the library?");
        }
        if theirs != layout.identity(peer, theirs.pid) {
            return corrupt("its inbox has another shape: were the two configured differently?");
        }
        if !memory::is_sealed(file, layout.bytes()?) {
            return corrupt("its inbox is shorter than it says");
        }
        let region = Mapping::new(file, layout.region_offset(me), layout.region_bytes())?;
        Ok(Self::Shm { header, region, layout })
    }

    pub(crate) fn header(&self) -> &RankHeader {
        match self {
            Self::Local(inbox) => inbox.header(),
            // SAFETY: `map` has looked at it; it consists of atomics and constants.
            Self::Shm { header, .. } => unsafe { &*header.start().cast() },
        }
    }

    /// The region that `me` and the owner share.
    pub(crate) fn region(&self, me: Rank) -> Region {
        match self {
            Self::Local(inbox) => inbox.region(me),
            Self::Shm { region, layout, .. } => Region { start: region.start(), layout: *layout },
        }
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: InboxLayout = InboxLayout { nranks: 3, channels: 2, slot_bytes: 4160, depth: 3 };

    #[test]
    fn no_two_things_overlap() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let base = inbox.memory.start().addr();
        let mut spans = vec![(base, size_of::<RankHeader>())];
        for source in 0..3 {
            for channel in 0..2 {
                let place = inbox.region(source).link(channel);
                assert_eq!(place.slots.addr() % memory::page(), 0);
                spans.push((place.line_ack.addr(), 128));
                spans.push((place.slot_ack.addr(), 128));
                spans.push((place.lines.addr(), size_of::<LlRing>()));
                spans.push((place.headers.addr(), 3 * size_of::<SlotHeader>()));
                spans.push((place.slots.addr(), 3 * LAYOUT.slot_bytes));
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
    fn a_peer_sees_the_same_memory() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let peer = PeerInbox::map(inbox.file(), 2, 1, LAYOUT).unwrap();
        let (there, here) = (peer.region(2).link(1), inbox.region(2).link(1));
        // SAFETY: both are the first byte of the same slot, used by this thread alone.
        unsafe {
            there.slots.write(77);
            assert_eq!(here.slots.read(), 77);
        }
    }

    #[test]
    fn another_shape_or_rank_is_told() {
        let inbox = Inbox::new(1, LAYOUT).unwrap();
        let other = InboxLayout { depth: 4, ..LAYOUT };
        for (peer, layout) in [(1, other), (0, LAYOUT)] {
            let error = PeerInbox::map(inbox.file(), 2, peer, layout).unwrap_err();
            assert!(matches!(error, LinkError::Corrupt { .. }), "{error}");
        }
        let empty = memory::create(1 << 30).unwrap();
        assert!(PeerInbox::map(empty.as_fd(), 2, 1, LAYOUT).is_err());
    }

    #[test]
    fn impossible_shapes_are_told() {
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
