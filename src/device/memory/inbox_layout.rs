//! The layout of inboxes: how many links and slots they have, and where each link lies in them.
//!
//! An inbox holds the rings of all links that end at a rank, and the rank's counters of all links
//! that begin there. All ranks of a communicator have inboxes of one layout, so that each rank
//! knows where in another rank's inbox its own links lie.

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::launch::LinkEnd;

use crate::channels::{FIRST_OF_SCHEDULES, MAX_OF_SCHEDULES};
use crate::config::Config;

/// Bytes of the longest LL message between devices.
pub(crate) const LL_BYTES: usize = 2048;
/// Words of an LL line: the tag, the length, and four bytes of data in each of the others.
const LL_WORDS: usize = 2 + LL_BYTES / 4;
/// Bytes from one counter to the next. Counters are polled by another device, so each has two cache
/// lines to itself.
const COUNTER_STRIDE: usize = 128;
const WORD: usize = 8;
/// The alignment of the first slot.
const SLOTS_ALIGN: usize = 256;
/// Bytes of an inbox, unless the user chooses another slot length or depth.
const BUDGET: usize = 64 << 20;
/// The automatic slot length is not reduced below this to make room for more channels.
const SMALLEST_SLOT: usize = 4 << 10;
/// The automatic slot length is at most this.
const LARGEST_SLOT: usize = 128 << 10;

/// The sizes of an inbox, the same on all ranks of a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceInboxLayout {
    pub(crate) nranks: u32,
    /// Links from each rank: one for sends and receives, and those of schedules.
    pub(crate) channels: Channel,
    /// Slots of a link.
    pub(crate) depth: u32,
    /// Bytes of a slot.
    pub(crate) slot_bytes: usize,
}

/// The offsets in an inbox, in bytes, of the parts of a link.
pub(super) struct LinkOffsets {
    filled: usize,
    pub(super) drained: usize,
    pub(super) sent: usize,
    received: usize,
    heads: usize,
    ll: usize,
    slots: usize,
}

impl DeviceInboxLayout {
    /// The layout that the settings ask for, in at most [`BUDGET`] bytes where they leave it open.
    pub(crate) fn new(config: &Config, nranks: u32) -> Self {
        let depth = config.gpu_slot_depth.unwrap_or(4);
        let slots = (nranks as usize).saturating_sub(1).max(1) * depth as usize;
        let most_channels = usize::from(FIRST_OF_SCHEDULES + MAX_OF_SCHEDULES);
        let affordable = (BUDGET / (slots * most_channels)).max(1);
        let automatic = (1usize << affordable.ilog2()).clamp(SMALLEST_SLOT, LARGEST_SLOT);
        let slot_bytes = config.gpu_slot_bytes.unwrap_or(automatic);
        // Schedules get at least two channels: a double tree needs them.
        let least_channels = usize::from(FIRST_OF_SCHEDULES) + 2;
        let channels = (BUDGET / (slots * slot_bytes)).clamp(least_channels, most_channels);
        Self { nranks, channels: channels as Channel, depth, slot_bytes }
    }

    /// The number of links to all other ranks; as many come from them.
    pub(in crate::device) fn links(&self) -> usize {
        (self.nranks as usize - 1) * usize::from(self.channels)
    }

    /// The index, in the link tables of `me`, of the links to and from `peer` on `channel`.
    pub(in crate::device) fn index(&self, me: Rank, peer: Rank, channel: Channel) -> usize {
        debug_assert!(me != peer && channel < self.channels);
        let peer = peer - Rank::from(peer > me);
        peer as usize * usize::from(self.channels) + usize::from(channel)
    }

    /// The rank at the other end of each link of `me`, in the order of the link tables.
    pub(in crate::device) fn peers(&self, me: Rank) -> Vec<Rank> {
        let others = (0..self.nranks).filter(|rank| *rank != me);
        others.flat_map(|rank| vec![rank; self.channels.into()]).collect()
    }

    fn heads_bytes(&self) -> usize {
        (self.depth as usize * WORD).next_multiple_of(COUNTER_STRIDE)
    }

    fn ll_bytes(&self) -> usize {
        (self.depth as usize * LL_WORDS * WORD).next_multiple_of(COUNTER_STRIDE)
    }

    /// Bytes of a link that must be zero at first: all but its slots.
    fn zeroed_per_link(&self) -> usize {
        3 * COUNTER_STRIDE + self.heads_bytes() + self.ll_bytes()
    }

    /// Bytes at the start of an inbox that must be zero at first.
    pub(super) fn zeroed(&self) -> usize {
        self.links() * self.zeroed_per_link()
    }

    fn first_slot(&self) -> usize {
        self.zeroed().next_multiple_of(SLOTS_ALIGN)
    }

    /// Bytes of an inbox.
    pub(super) fn bytes(&self) -> usize {
        self.first_slot() + self.links() * self.depth as usize * self.slot_bytes
    }

    /// Where, in the inbox of `owner`, the links to and from `peer` lie.
    pub(super) fn offsets(&self, owner: Rank, peer: Rank, channel: Channel) -> LinkOffsets {
        let index = self.index(owner, peer, channel);
        let counters = index * self.zeroed_per_link();
        let heads = counters + 3 * COUNTER_STRIDE;
        LinkOffsets {
            filled: counters,
            drained: counters + COUNTER_STRIDE,
            sent: counters + 2 * COUNTER_STRIDE,
            received: counters + 2 * COUNTER_STRIDE + WORD,
            heads,
            ll: heads + self.heads_bytes(),
            slots: self.first_slot() + index * self.depth as usize * self.slot_bytes,
        }
    }

    /// The offset of a word of the inbox of `owner` to which rank `from` may write before the first
    /// message: it lies in a slot, whose content has no meaning then.
    pub(in crate::device) fn trial_word(&self, owner: Rank, from: Rank) -> usize {
        self.offsets(owner, from, 0).slots
    }

    /// The ends that rank `me` has of its link to `peer` and of the link from `peer`. Each rank
    /// comes with the address of its inbox, as `me` sees it.
    pub(in crate::device) fn ends(
        &self,
        (me, my_inbox): (Rank, u64),
        (peer, peer_inbox): (Rank, u64),
        channel: Channel,
    ) -> [LinkEnd; 2] {
        let mine = self.offsets(me, peer, channel);
        let theirs = self.offsets(peer, me, channel);
        let end = |inbox: u64, ring: &LinkOffsets, drained: u64, position: u64| LinkEnd {
            slots: inbox + ring.slots as u64,
            heads: inbox + ring.heads as u64,
            ll: inbox + ring.ll as u64,
            filled: inbox + ring.filled as u64,
            drained,
            position,
            slot_bytes: self.slot_bytes as u64,
            depth: self.depth.into(),
            ll_words: LL_WORDS as u64,
        };
        [
            end(peer_inbox, &theirs, my_inbox + mine.drained as u64, my_inbox + mine.sent as u64),
            end(
                my_inbox,
                &mine,
                peer_inbox + theirs.drained as u64,
                my_inbox + mine.received as u64,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inboxes_stay_within_their_budget() {
        for nranks in [1, 2, 3, 8, 16, 64, 128, 1000] {
            let layout = DeviceInboxLayout::new(&Config::default(), nranks);
            assert!(layout.slot_bytes.is_multiple_of(64), "{layout:?}");
            // With more ranks the smallest slots of all links already need more than the budget.
            if nranks <= 128 {
                assert!(layout.links() * 4 * layout.slot_bytes <= BUDGET, "{layout:?}");
                assert_eq!(layout.channels, FIRST_OF_SCHEDULES + MAX_OF_SCHEDULES, "{layout:?}");
            }
        }
        let slot_bytes = |nranks| DeviceInboxLayout::new(&Config::default(), nranks).slot_bytes;
        assert_eq!((slot_bytes(2), slot_bytes(8)), (128 << 10, 128 << 10));
    }

    #[test]
    fn both_ends_of_a_link_see_the_same_ring_and_nothing_overlaps() {
        let layout = DeviceInboxLayout { nranks: 4, channels: 3, depth: 2, slot_bytes: 64 };
        let base = |rank: Rank| u64::from(rank) << 32;
        let mut parts = Vec::new();
        for me in 0..4 {
            let peers = layout.peers(me);
            for peer in (0..4).filter(|peer| *peer != me) {
                for channel in 0..3 {
                    assert_eq!(peers[layout.index(me, peer, channel)], peer);
                    let [sending, _] = layout.ends((me, base(me)), (peer, base(peer)), channel);
                    let [_, receiving] = layout.ends((peer, base(peer)), (me, base(me)), channel);
                    assert_eq!(
                        LinkEnd { position: 0, ..sending },
                        LinkEnd { position: 0, ..receiving }
                    );
                    let inbox = base(peer)..base(peer) + layout.bytes() as u64;
                    assert!(inbox.contains(&sending.slots) && inbox.contains(&sending.filled));
                    assert!(sending.slots.is_multiple_of(64));
                    let LinkEnd { slots, heads, ll, filled, drained, .. } = sending;
                    parts.extend([(slots, 2 * 64), (heads, 16), (filled, 8), (drained, 8)]);
                    parts.push((ll, (2 * LL_WORDS * WORD) as u64));
                    parts.extend([(sending.position, 8), (receiving.position, 8)]);
                }
            }
        }
        parts.sort_unstable();
        assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    }
}
