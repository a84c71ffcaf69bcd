//! Which memory a chunk is: cells, numbered through all ranks, tiles and calls.

use super::call::ExecutedCall;
use super::counterexample::BufferPlacement;
use crate::schedule::Chunk;
use crate::types::Rank;

/// The cells of all calls. A cell holds one tile of one chunk; a scratch chunk is the same cell in
/// every tile. Every call has cells of its own, scratch included: a call starts on a rank when
/// nothing of the former call touches the rank's memory any more, and finds scratch undefined.
pub(super) struct CellLayout {
    placement: BufferPlacement,
    calls: Vec<CallCells>,
    /// How many cells there are.
    pub(super) cells: usize,
}

/// Where the cells of one call begin.
struct CallCells {
    scratch: usize,
    /// Input and output chunks of the first tile.
    tiled: usize,
    /// Input and output chunks of all ranks in one tile.
    per_tile: usize,
}

impl CellLayout {
    pub(super) fn new(calls: &[ExecutedCall], placement: BufferPlacement) -> Self {
        let mut cells = 0;
        let calls = calls
            .iter()
            .map(|call| {
                let ranks = call.flat.nranks as usize;
                let tiled = cells + ranks * call.scratch as usize;
                let per_tile = ranks * (call.inputs + call.outputs) as usize;
                let region = CallCells { scratch: cells, tiled, per_tile };
                cells = tiled + per_tile * call.tiles as usize;
                region
            })
            .collect();
        Self { placement, calls, cells }
    }

    /// The cell of `chunk` of `rank` in `tile` of call number `number`, which is `call`.
    pub(super) fn cell(
        &self,
        number: usize,
        call: &ExecutedCall,
        rank: Rank,
        chunk: Chunk,
        tile: u32,
    ) -> usize {
        let region = &self.calls[number];
        let tiled = |i: u32| {
            let rank = rank as usize * (call.inputs + call.outputs) as usize;
            region.tiled + tile as usize * region.per_tile + rank + i as usize
        };
        match chunk {
            Chunk::Scratch(i) => {
                region.scratch + rank as usize * call.scratch as usize + i as usize
            }
            Chunk::Input(i) => tiled(i),
            Chunk::Output(i) => match self.shared_input(call, rank, i) {
                Some(input) => tiled(input),
                None => tiled(call.inputs + i),
            },
        }
    }

    /// The input chunk that is the same memory as an output chunk, if there is one.
    fn shared_input(&self, call: &ExecutedCall, rank: Rank, output: u32) -> Option<u32> {
        match self.placement {
            BufferPlacement::OutOfPlace => None,
            BufferPlacement::InPlace => {
                call.collective.in_place(call.flat.nranks, call.parts, rank, output)
            }
        }
    }
}
