//! The layout of the two device rings of one peer and channel, in one block of pinned memory that
//! kernels and the proxy share.
//!
//! Counters that different sides write are on separate cache lines, so that neither reads of the
//! device over the bus nor polls of a core disturb the other direction.

use std::any::Any;
use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_cuda::launch::LinkEnd;
use maypole_transport::device_ring::{DeviceRingMemory, DeviceRingReceiver, DeviceRingSender};
use maypole_transport::sync::{AtomicU64, Cell};

use super::pump::LinkRings;

/// Bytes from one counter to the next: two cache lines, which processors fetch together.
const COUNTER_STRIDE: usize = 128;
/// Bytes of the counters `filled` and `drained` of both rings.
const COUNTERS: usize = 4 * COUNTER_STRIDE;

/// The sizes of both rings. Slots are as long as those of the link, so that every message fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingLayout {
    pub(super) depth: u32,
    /// A multiple of 64.
    pub(super) slot_bytes: usize,
}

/// The direction of the messages of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingDirection {
    FromKernel,
    ToKernel,
}

impl RingLayout {
    /// Bytes of the block.
    pub(super) fn bytes(&self) -> usize {
        COUNTERS + 2 * (self.heads() + self.slots())
    }

    fn heads(&self) -> usize {
        (self.depth as usize * size_of::<u64>()).next_multiple_of(COUNTER_STRIDE)
    }

    fn slots(&self) -> usize {
        self.depth as usize * self.slot_bytes
    }

    /// The offsets in the block of the parts of a ring: `filled`, `drained`, heads, slots.
    fn offsets(&self, direction: RingDirection) -> [usize; 4] {
        let i = direction as usize;
        let counters = 2 * i * COUNTER_STRIDE;
        let heads = COUNTERS + i * self.heads();
        let slots = COUNTERS + 2 * self.heads() + i * self.slots();
        [counters, counters + COUNTER_STRIDE, heads, slots]
    }

    /// A ring of the block at `base`, for the host.
    pub(super) fn host_ring(&self, base: *mut u8, direction: RingDirection) -> DeviceRingMemory {
        let [filled, drained, heads, slots] =
            self.offsets(direction).map(|at| base.wrapping_add(at));
        DeviceRingMemory {
            slots,
            slot_bytes: self.slot_bytes,
            depth: self.depth,
            headers: heads.cast::<Cell<u64>>(),
            filled: filled.cast::<AtomicU64>(),
            drained: drained.cast::<AtomicU64>(),
        }
    }

    /// The ends of the proxy of both rings of the block at `base`, for messages to and from `peer`.
    ///
    /// # Safety
    /// At `base`, a multiple of 128, are [`bytes`](Self::bytes) zero bytes that live as long as
    /// `keep`, and nothing else is made the proxy's end of these rings.
    pub(super) unsafe fn proxy_ends(
        &self,
        base: *mut u8,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> LinkRings {
        let [from, to] = [RingDirection::FromKernel, RingDirection::ToKernel]
            .map(|direction| self.host_ring(base, direction));
        let expected = Arc::new(AtomicU64::new(0));
        // SAFETY: the caller guarantees what both ends require.
        unsafe {
            let from_kernel = DeviceRingReceiver::new(from, peer, keep.clone());
            LinkRings { from_kernel, to_kernel: DeviceRingSender::new(to, peer, keep), expected }
        }
    }

    /// The kernel's end of a ring of the block at device address `base`; `position` is the address
    /// of the kernel's counter. There are no LL lines: the host would have to write a flag into
    /// each word, for a gain in latency that the network hides.
    pub(super) fn kernel_end(&self, base: u64, direction: RingDirection, position: u64) -> LinkEnd {
        let [filled, drained, heads, slots] = self.offsets(direction).map(|at| base + at as u64);
        LinkEnd {
            slots,
            heads,
            ll: 0,
            filled,
            drained,
            position,
            slot_bytes: self.slot_bytes as u64,
            depth: self.depth.into(),
            ll_words: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_parts_overlap_and_both_sides_use_the_same_addresses() {
        for (depth, slot_bytes) in [(1, 64), (4, 65536), (17, 192)] {
            let layout = RingLayout { depth, slot_bytes };
            let mut spans = Vec::new();
            for direction in [RingDirection::FromKernel, RingDirection::ToKernel] {
                let base = std::ptr::without_provenance_mut(1 << 20);
                let (place, end) =
                    (layout.host_ring(base, direction), layout.kernel_end(1 << 30, direction, 7));
                let there = |address: usize| (address - (1 << 20) + (1 << 30)) as u64;
                assert_eq!(
                    [end.slots, end.heads, end.filled, end.drained].map(|a| a as usize),
                    [
                        place.slots.addr(),
                        place.headers.addr(),
                        place.filled.addr(),
                        place.drained.addr(),
                    ]
                    .map(|a| there(a) as usize)
                );
                assert!(end.slots.is_multiple_of(64) && end.position == 7);
                spans.extend([
                    (end.slots, depth as usize * slot_bytes),
                    (end.heads, depth as usize * 8),
                    (end.filled, COUNTER_STRIDE),
                    (end.drained, COUNTER_STRIDE),
                ]);
            }
            spans.sort_unstable();
            for pair in spans.windows(2) {
                assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0, "{pair:?}");
            }
            let (last, bytes) = spans[spans.len() - 1];
            assert!(last + bytes as u64 <= (1 << 30) + layout.bytes() as u64);
        }
    }
}
