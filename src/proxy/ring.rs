//! The memory of the two rings between kernels and the proxy, for one peer and channel: one block, which both see.
//!
//! Counters that different sides write lie on lines of their own, so that neither a device's reads over the bus nor a core's
//! polls disturb the other direction.

use std::any::Any;
use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_cuda::launch::LinkEnd;
use maypole_transport::device_ring::{DeviceRingMemory, DeviceRingReceiver, DeviceRingSender};
use maypole_transport::sync::{AtomicU64, Cell};

use super::pump::Rings;

/// Bytes from one counter to the next: two cache lines, which processors fetch together.
const APART: usize = 128;
/// `filled` and `drained` of both rings.
const COUNTERS: usize = 4 * APART;

/// The shape of both rings. Slots are as long as those of the link, so that every message fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) depth: u32,
    /// A multiple of 64.
    pub(super) slot_bytes: usize,
}

/// Which way the messages of a ring go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    FromKernel,
    ToKernel,
}

impl Shape {
    /// Bytes of the block.
    pub(super) fn bytes(&self) -> usize {
        COUNTERS + 2 * (self.heads() + self.slots())
    }

    fn heads(&self) -> usize {
        (self.depth as usize * size_of::<u64>()).next_multiple_of(APART)
    }

    fn slots(&self) -> usize {
        self.depth as usize * self.slot_bytes
    }

    /// Where in the block the parts of a ring begin: `filled`, `drained`, heads, slots.
    fn offsets(&self, way: Way) -> [usize; 4] {
        let i = way as usize;
        let counters = 2 * i * APART;
        let heads = COUNTERS + i * self.heads();
        let slots = COUNTERS + 2 * self.heads() + i * self.slots();
        [counters, counters + APART, heads, slots]
    }

    /// A ring of the block at `base`, as the host sees it.
    pub(super) fn place(&self, base: *mut u8, way: Way) -> DeviceRingMemory {
        let [filled, drained, heads, slots] = self.offsets(way).map(|at| base.wrapping_add(at));
        DeviceRingMemory {
            slots,
            slot_bytes: self.slot_bytes,
            depth: self.depth,
            headers: heads.cast::<Cell<u64>>(),
            filled: filled.cast::<AtomicU64>(),
            drained: drained.cast::<AtomicU64>(),
        }
    }

    /// The proxy's ends of both rings of the block at `base`, for messages to and from `peer`.
    ///
    /// # Safety
    /// There are as many bytes of zeros at `base` as the shape has, aligned to 128; they live as long as `keep`, and the proxy has no
    /// other ends of them.
    pub(super) unsafe fn proxy_ends(
        &self,
        base: *mut u8,
        peer: Rank,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Rings {
        let [from, to] = [Way::FromKernel, Way::ToKernel].map(|way| self.place(base, way));
        let wanted = Arc::new(AtomicU64::new(0));
        // SAFETY: the caller's promise.
        unsafe {
            let from_kernel = DeviceRingReceiver::new(from, peer, keep.clone());
            Rings { from_kernel, to_kernel: DeviceRingSender::new(to, peer, keep), wanted }
        }
    }

    /// A kernel's end of a ring of the block at `base`, as devices see it. `position` is where the kernel counts. There are no
    /// ll: a flag in each word would have to be written by the host, word by word, for a latency that the network hides.
    pub(super) fn end(&self, base: u64, way: Way, position: u64) -> LinkEnd {
        let [filled, drained, heads, slots] = self.offsets(way).map(|at| base + at as u64);
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
    fn no_two_parts_overlap_and_both_sides_see_the_same() {
        for (depth, slot_bytes) in [(1, 64), (4, 65536), (17, 192)] {
            let shape = Shape { depth, slot_bytes };
            let mut spans = Vec::new();
            for way in [Way::FromKernel, Way::ToKernel] {
                let base = std::ptr::without_provenance_mut(1 << 20);
                let (place, end) = (shape.place(base, way), shape.end(1 << 30, way, 7));
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
                    (end.filled, APART),
                    (end.drained, APART),
                ]);
            }
            spans.sort_unstable();
            for pair in spans.windows(2) {
                assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0, "{pair:?}");
            }
            let (last, bytes) = spans[spans.len() - 1];
            assert!(last + bytes as u64 <= (1 << 30) + shape.bytes() as u64);
        }
    }
}
