//! The positions of a schedule's chunks in the buffers of a call.

use maypole_algorithms::{Chunk, Rank, Schedule};
use maypole_transport::ll::{LL_CAPACITY, LlSender};

use crate::call::{Extent, Extents, Task};

/// Parts begin at multiples of a cache line (relative to their block), so that two ranks never
/// write the same line.
const ALIGN: usize = 64;

/// The extents of all chunks of a call, in elements.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    blocks: Extents,
    /// Chunks per block.
    parts: u32,
    /// The elements of a part are a multiple of this.
    align: usize,
    /// The send buffer has a block for each rank, not a single one.
    sends_blocks: bool,
    /// The receive buffer has a block for each rank, not a single one.
    receives_blocks: bool,
    /// Elements of a chunk that one tile covers.
    pub(crate) tile: usize,
    /// Tiles of the longest chunk, at least one. The last tiles of shorter chunks are empty.
    pub(crate) tiles: u64,
}

impl Geometry {
    /// The extents for `task` by `schedule` in tiles of at most `tile_bytes`.
    pub(crate) fn new(schedule: &Schedule, task: &Task, tile_bytes: usize) -> Self {
        let size = task.dtype.size();
        let mut geometry = Self {
            blocks: task.extents.clone(),
            parts: schedule.parts,
            align: ALIGN / size,
            // With two ranks and one part, a buffer of blocks has two chunks.
            sends_blocks: task.collective.input_chunks(2, 1) == 2,
            receives_blocks: task.collective.output_chunks(2, 1) == 2,
            tile: (tile_bytes / size).max(1),
            tiles: 1,
        };
        geometry.tiles = geometry.longest().div_ceil(geometry.tile).max(1) as u64;
        geometry
    }

    /// Elements of the longest chunk.
    pub(crate) fn longest(&self) -> usize {
        self.part(Extent { start: 0, len: self.blocks.longest() }, 0).len
    }

    /// Whether every message of `schedule` fits the LL protocol of links between host ranks, with
    /// elements of `size` bytes.
    pub(crate) fn fits_ll(&self, schedule: &Schedule, size: usize) -> bool {
        schedule.credit <= LlSender::CREDITS && self.longest() * size <= LL_CAPACITY
    }

    /// The extent of a chunk of the send buffer of `rank`.
    pub(crate) fn input(&self, rank: Rank, chunk: u32) -> Extent {
        self.chunk(self.sends_blocks, rank, chunk)
    }

    /// The extent of a chunk of the receive buffer of `rank`.
    pub(crate) fn output(&self, rank: Rank, chunk: u32) -> Extent {
        self.chunk(self.receives_blocks, rank, chunk)
    }

    /// The extent of a chunk of a buffer of `rank`. None for scratch, which is as long as its
    /// content.
    pub(crate) fn buffer_extent(&self, rank: Rank, chunk: Chunk) -> Option<Extent> {
        match chunk {
            Chunk::Input(i) => Some(self.input(rank, i)),
            Chunk::Output(i) => Some(self.output(rank, i)),
            Chunk::Scratch(_) => None,
        }
    }

    fn chunk(&self, all_blocks: bool, rank: Rank, chunk: u32) -> Extent {
        if all_blocks {
            return self.part(self.blocks.block(chunk / self.parts), chunk % self.parts);
        }
        // The buffer is the rank's own block, or a vector of the same length on all ranks.
        let Extent { len, .. } = self.blocks.block(rank);
        self.part(Extent { start: 0, len }, chunk)
    }

    /// Part number `part` of a block.
    fn part(&self, block: Extent, part: u32) -> Extent {
        let size = block.len.div_ceil(self.parts as usize).next_multiple_of(self.align);
        let skip = (part as usize).saturating_mul(size).min(block.len);
        Extent { start: block.start + skip, len: size.min(block.len - skip) }
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::collective::{all_gather, all_reduce::two_shot};
    use maypole_algorithms::{Collective, DType, RedOp};

    use super::*;

    fn task(collective: Collective, extents: Extents, dtype: DType) -> Task {
        Task { collective, extents, dtype, reduction: RedOp::Sum.into(), barrier: false }
    }

    #[test]
    fn chunks_and_tiles_cover_every_element_once() {
        for dtype in [DType::Int8, DType::Float64] {
            for n in 1..9 {
                for count in [0, 1, 7, 63, 64, 65, 1000, 4097] {
                    for tile_bytes in [64, 512, 4096] {
                        let schedule = two_shot::schedule(n);
                        let g = Geometry::new(
                            &schedule,
                            &task(Collective::AllReduce, Extents::Even(count), dtype),
                            tile_bytes,
                        );
                        let mut seen = 0;
                        for chunk in 0..schedule.output_chunks() {
                            for tile in 0..g.tiles {
                                let s = g.output(n - 1, chunk).slice(g.tile, tile);
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

    #[test]
    fn blocks_of_different_length_have_chunks_of_their_own_length() {
        let extents = [(70, 5), (0, 0), (3, 67)].map(|(start, len)| Extent { start, len });
        let task = task(Collective::AllGather, Extents::Vector(extents.into()), DType::Float64);
        let g = Geometry::new(&all_gather::direct::schedule(3), &task, 256);
        assert_eq!((g.longest(), g.tile, g.tiles), (67, 32, 3));
        for (rank, extent) in (0..).zip(extents) {
            assert_eq!(g.output(0, rank), extent);
            assert_eq!(g.input(rank, 0), Extent { start: 0, ..extent });
        }
    }
}
