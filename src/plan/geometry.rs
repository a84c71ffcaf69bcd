//! Where the chunks of a schedule lie in the caller's buffers.

use maypole_algorithms::{Chunk, Schedule};

use crate::call::Call;

/// Parts begin on cache lines (relative to the buffer), so that two ranks never write the same line.
const ALIGN: usize = 64;

/// The extents of all chunks of a call, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Elements per block.
    count: usize,
    /// Chunks per block.
    parts: u32,
    /// Elements of every part but the last ones.
    part: usize,
    /// Elements of a chunk that one tile covers.
    pub(crate) tile: usize,
    /// Number of tiles, at least one.
    pub(crate) tiles: u64,
}

/// A piece of a buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Extent {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Extent {
    /// The part that tile number `tile` covers, in tiles of `elements`.
    pub(crate) fn slice(self, elements: usize, tile: u64) -> Self {
        let skip = (tile as usize * elements).min(self.len);
        Self { start: self.start + skip, len: elements.min(self.len - skip) }
    }
}

impl Geometry {
    /// The extents for `call` by `schedule` in tiles of at most `tile_bytes`.
    pub(crate) fn new(schedule: &Schedule, call: &Call, tile_bytes: usize) -> Self {
        let align = ALIGN / call.dtype.size();
        let part = call.count.div_ceil(schedule.parts as usize).next_multiple_of(align);
        let tile = (tile_bytes / call.dtype.size()).max(1);
        let tiles = part.min(call.count).div_ceil(tile).max(1) as u64;
        Self { count: call.count, parts: schedule.parts, part, tile, tiles }
    }

    /// Where a chunk of the send or the receive buffer lies.
    pub(crate) fn extent(&self, chunk: u32) -> Extent {
        let block = (chunk / self.parts) as usize;
        let start = ((chunk % self.parts) as usize).saturating_mul(self.part).min(self.count);
        Extent { start: block * self.count + start, len: self.part.min(self.count - start) }
    }

    /// Extent of `chunk` in a schedule that runs in one tile, or None for scratch, whose length is that of its content.
    pub(crate) fn of(&self, chunk: Chunk) -> Option<Extent> {
        match chunk {
            Chunk::Input(i) | Chunk::Output(i) => Some(self.extent(i)),
            Chunk::Scratch(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::collective::all_reduce::two_shot;
    use maypole_algorithms::{Collective, DType, RedOp};

    use super::*;

    fn call(count: usize, dtype: DType) -> Call {
        Call {
            collective: Collective::AllReduce,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count,
            dtype,
            reduction: RedOp::Sum.into(),
        }
    }

    #[test]
    fn chunks_and_tiles_cover_every_element_once() {
        for dtype in [DType::Int8, DType::Float64] {
            for n in 1..9 {
                for count in [0, 1, 7, 63, 64, 65, 1000, 4097] {
                    for tile_bytes in [64, 512, 4096] {
                        let schedule = two_shot::schedule(n);
                        let g = Geometry::new(&schedule, &call(count, dtype), tile_bytes);
                        let mut seen = 0;
                        for chunk in 0..schedule.output_chunks() {
                            for tile in 0..g.tiles {
                                let s = g.extent(chunk).slice(g.tile, tile);
                                assert!(s.len == 0 || s.start == seen);
                                assert!(s.len * dtype.size() <= tile_bytes);
                                seen += s.len;
                            }
                        }
                        assert_eq!(seen, count);
                    }
                }
            }
        }
    }
}
