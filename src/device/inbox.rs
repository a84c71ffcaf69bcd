//! A rank's inbox in device memory: the rings of all links that end at the rank, and its counters of all that begin there.
//!
//! All ranks of a communicator have inboxes of one shape, so that each knows where in the inbox of another its own links lie.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::{DriverError, Stream};
use maypole_cuda::ipc::{self, Imported, MemoryHandle};
use maypole_cuda::launch::LinkEnd;

use super::gpu::Gpu;
use super::pool::Memory;
use crate::channels::FIRST_OF_SCHEDULES;
use crate::channels::MAX_OF_SCHEDULES;
use crate::config::Config;

/// Bytes of a message that travels by lines, at most.
pub(crate) const LL_BYTES: usize = 2048;
/// Words of a line: tag, length, and four bytes in each of the others.
const LINE_WORDS: usize = 2 + LL_BYTES / 4;
/// Counters are polled from afar: each has these bytes to itself.
const APART: usize = 128;
const WORD: usize = 8;
/// Slots begin here.
const SLOTS_ALIGN: usize = 256;
/// What an inbox takes, if the user does not say otherwise.
const BUDGET: usize = 64 << 20;
/// Slots are not made smaller than this so that there can be more channels.
const LEAST_SLOT: usize = 4 << 10;
/// Nor larger than this.
const MOST_SLOT: usize = 128 << 10;

/// The sizes of an inbox, the same on all ranks of a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) nranks: u32,
    /// Links from each rank: one for sends and receives, and those of schedules.
    pub(crate) channels: Channel,
    /// Slots of a link.
    pub(crate) depth: u32,
    pub(crate) slot_bytes: usize,
}

/// Where in an inbox the parts of a link are, in bytes.
struct Place {
    filled: usize,
    drained: usize,
    sent: usize,
    received: usize,
    heads: usize,
    lines: usize,
    slots: usize,
}

impl Shape {
    /// As the settings say, in reasonable memory.
    pub(crate) fn new(config: &Config, nranks: u32) -> Self {
        let depth = config.gpu_slot_depth.unwrap_or(4);
        let links = (nranks as usize).saturating_sub(1).max(1) * depth as usize;
        let most = usize::from(FIRST_OF_SCHEDULES + MAX_OF_SCHEDULES);
        let fits = (BUDGET / (links * most)).max(1);
        let automatic = (1usize << fits.ilog2()).clamp(LEAST_SLOT, MOST_SLOT);
        let slot_bytes = config.gpu_slot_bytes.unwrap_or(automatic);
        // Two for schedules are the least: a double tree needs them.
        let channels =
            (BUDGET / (links * slot_bytes)).clamp(usize::from(FIRST_OF_SCHEDULES) + 2, most);
        Self { nranks, channels: channels as Channel, depth, slot_bytes }
    }

    /// Links from and to each of the other ranks.
    pub(crate) fn links(&self) -> usize {
        (self.nranks as usize - 1) * usize::from(self.channels)
    }

    /// The place in the tables of `me` of the links from and to `peer` on `channel`.
    pub(crate) fn index(&self, me: Rank, peer: Rank, channel: Channel) -> usize {
        debug_assert!(me != peer && channel < self.channels);
        let peer = peer - Rank::from(peer > me);
        peer as usize * usize::from(self.channels) + usize::from(channel)
    }

    /// The other end of each link of `me`, by its place in the tables.
    pub(crate) fn peers(&self, me: Rank) -> Vec<Rank> {
        let others = (0..self.nranks).filter(|rank| *rank != me);
        others.flat_map(|rank| vec![rank; self.channels.into()]).collect()
    }

    fn heads_bytes(&self) -> usize {
        (self.depth as usize * WORD).next_multiple_of(APART)
    }

    fn lines_bytes(&self) -> usize {
        (self.depth as usize * LINE_WORDS * WORD).next_multiple_of(APART)
    }

    /// Bytes of a link that are zero at first.
    fn words_bytes(&self) -> usize {
        3 * APART + self.heads_bytes() + self.lines_bytes()
    }

    fn zeroed(&self) -> usize {
        self.links() * self.words_bytes()
    }

    fn bytes(&self) -> usize {
        let slots = self.links() * self.depth as usize * self.slot_bytes;
        self.zeroed().next_multiple_of(SLOTS_ALIGN) + slots
    }

    /// The parts, in the inbox of `owner`, of the links from and to `peer`.
    fn place(&self, owner: Rank, peer: Rank, channel: Channel) -> Place {
        let index = self.index(owner, peer, channel);
        let words = index * self.words_bytes();
        let heads = words + 3 * APART;
        Place {
            filled: words,
            drained: words + APART,
            sent: words + 2 * APART,
            received: words + 2 * APART + WORD,
            heads,
            lines: heads + self.heads_bytes(),
            slots: self.zeroed().next_multiple_of(SLOTS_ALIGN)
                + index * self.depth as usize * self.slot_bytes,
        }
    }

    /// The ends, as rank `me` sees them, of its link to `peer` and of that from there. `mine` and `theirs` are the addresses of the two
    /// inboxes; messages are of at most `slot_bytes`, which may be less than the slots have.
    pub(crate) fn ends(
        &self,
        (me, mine): (Rank, u64),
        (peer, theirs): (Rank, u64),
        channel: Channel,
    ) -> [LinkEnd; 2] {
        let (here, there) = (self.place(me, peer, channel), self.place(peer, me, channel));
        let end = |ring: u64, place: &Place, drained: u64, position: u64| LinkEnd {
            slots: ring + place.slots as u64,
            heads: ring + place.heads as u64,
            lines: ring + place.lines as u64,
            filled: ring + place.filled as u64,
            drained,
            position,
            slot_bytes: self.slot_bytes as u64,
            depth: self.depth.into(),
            line_words: LINE_WORDS as u64,
        };
        [
            end(theirs, &there, mine + here.drained as u64, mine + here.sent as u64),
            end(mine, &here, theirs + there.drained as u64, mine + here.received as u64),
        ]
    }
}

/// A rank's inbox. It is freed when neither the rank nor any other of its process uses it.
pub(crate) struct Inbox {
    /// Until it goes back.
    memory: Option<Memory>,
    /// Ranks of other processes may write to it after its end.
    unquiet: AtomicBool,
}

/// Inboxes of this process that others may find by their address.
static KNOWN: Mutex<Vec<(u64, Weak<Inbox>)>> = Mutex::new(Vec::new());

impl Inbox {
    /// One of `shape`, ready for use by others.
    pub(crate) fn new(gpu: &Gpu, stream: &Stream, shape: &Shape) -> Result<Arc<Self>, DriverError> {
        let memory = gpu.pool.memory(shape.bytes())?;
        stream.fill(&memory, 0, shape.zeroed())?;
        stream.synchronize()?;
        let inbox = Arc::new(Self { memory: Some(memory), unquiet: AtomicBool::new(false) });
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, inbox)| inbox.strong_count() > 0);
        known.push((inbox.address(), Arc::downgrade(&inbox)));
        Ok(inbox)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("until it goes back")
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory().address()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory().bytes()
    }

    /// Ranks of other processes may write to it after its end.
    pub(crate) fn is_unquiet(&self) {
        self.unquiet.store(true, Ordering::Relaxed);
    }

    /// Whether the ranks behind these links (of rank `me`) have taken all messages, and so write to this inbox no more. Reads the counters
    /// by `stream`.
    pub(crate) fn is_drained(
        &self,
        stream: &Stream,
        shape: &Shape,
        me: Rank,
        ports: impl Iterator<Item = (Rank, Channel)>,
    ) -> Result<bool, DriverError> {
        let words = stream.read(self.memory(), shape.zeroed())?;
        let word = |at: usize| words[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let mut ports = ports.map(|(peer, channel)| shape.place(me, peer, channel));
        Ok(ports.all(|place| word(place.drained) == word(place.sent)))
    }

    /// What another process opens it by; None where the driver cannot share it.
    pub(crate) fn handle(&self) -> Option<MemoryHandle> {
        ipc::export_buffer(self.memory()).ok()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take()
            && self.unquiet.load(Ordering::Relaxed)
        {
            memory.retire();
        }
    }
}

/// The inbox of another rank, within reach of this one's kernels.
pub(crate) enum Reached {
    /// Of a rank of this process.
    Here(Arc<Inbox>),
    /// Of another process of this host.
    Imported(Imported),
}

impl Reached {
    /// The inbox at `address` of this process, if it still is there.
    pub(crate) fn here(address: u64) -> Option<Self> {
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, inbox) = known.iter().rev().find(|(known, _)| *known == address)?;
        inbox.upgrade().map(Self::Here)
    }

    /// Whether its owner is in another process.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Imported(_))
    }

    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Here(inbox) => inbox.address(),
            Self::Imported(imported) => imported.address(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(nranks: u32) -> Shape {
        Shape::new(&Config::default(), nranks)
    }

    #[test]
    fn inboxes_stay_within_their_budget() {
        for nranks in [1, 2, 3, 8, 16, 64, 128, 1000] {
            let shape = shape(nranks);
            assert!(shape.slot_bytes.is_multiple_of(64), "{shape:?}");
            // Beyond this what every link needs is more than that.
            if nranks <= 128 {
                assert!(shape.links() * 4 * shape.slot_bytes <= BUDGET, "{shape:?}");
                assert_eq!(shape.channels, FIRST_OF_SCHEDULES + MAX_OF_SCHEDULES, "{shape:?}");
            }
        }
        assert_eq!((shape(2).slot_bytes, shape(8).slot_bytes), (128 << 10, 128 << 10));
    }

    #[test]
    fn both_ends_of_a_link_meet_and_nothing_overlaps() {
        let shape = Shape { nranks: 4, channels: 3, depth: 2, slot_bytes: 64 };
        let base = |rank: Rank| u64::from(rank) << 32;
        let mut parts = Vec::new();
        for me in 0..4 {
            let peers = shape.peers(me);
            for peer in (0..4).filter(|peer| *peer != me) {
                for channel in 0..3 {
                    assert_eq!(peers[shape.index(me, peer, channel)], peer);
                    let [sending, _] = shape.ends((me, base(me)), (peer, base(peer)), channel);
                    let [_, receiving] = shape.ends((peer, base(peer)), (me, base(me)), channel);
                    assert_eq!(
                        LinkEnd { position: 0, ..sending },
                        LinkEnd { position: 0, ..receiving }
                    );
                    let ring = base(peer)..base(peer) + shape.bytes() as u64;
                    assert!(ring.contains(&sending.slots) && ring.contains(&sending.filled));
                    assert!(sending.slots.is_multiple_of(64));
                    let LinkEnd { slots, heads, lines, filled, drained, .. } = sending;
                    parts.extend([(slots, 2 * 64), (heads, 16), (filled, 8), (drained, 8)]);
                    parts.push((lines, (2 * LINE_WORDS * WORD) as u64));
                    parts.extend([(sending.position, 8), (receiving.position, 8)]);
                }
            }
        }
        parts.sort_unstable();
        assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }
}
