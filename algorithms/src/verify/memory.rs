//! Which memory a chunk is: cells, numbered through all ranks, tiles and calls.

use std::fmt;

use super::form::Form;
use crate::schedule::Chunk;
use crate::types::Rank;

/// How the caller's send and receive buffers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferPlacement {
    /// Apart.
    OutOfPlace,
    /// Overlapping as [`Collective::in_place`](crate::Collective::in_place) says.
    InPlace,
}

impl fmt::Display for BufferPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OutOfPlace => "out of place",
            Self::InPlace => "in place",
        })
    }
}

/// A cell holds one tile of one chunk. Scratch is the same cell in every tile. Every call has cells of its own,
/// scratch too: a call starts on a rank when nothing of the former touches the rank's memory any more, and finds
/// scratch undefined.
pub(super) struct Memory {
    placement: BufferPlacement,
    calls: Vec<Region>,
    pub(super) cells: usize,
}

struct Region {
    first: usize,
    tiled: usize,
    per_tile: usize,
}

impl Memory {
    pub(super) fn new(calls: &[Form], placement: BufferPlacement) -> Self {
        let mut cells = 0;
        let calls = calls
            .iter()
            .map(|form| {
                let ranks = form.nranks as usize;
                let tiled = cells + ranks * form.scratch as usize;
                let per_tile = ranks * (form.inputs + form.outputs) as usize;
                let region = Region { first: cells, tiled, per_tile };
                cells = tiled + per_tile * form.tiles as usize;
                region
            })
            .collect();
        Self { placement, calls, cells }
    }

    /// The cell of `chunk` of `rank` in `tile` of call `call`, whose form is `form`.
    pub(super) fn cell(
        &self,
        call: usize,
        form: &Form,
        rank: Rank,
        chunk: Chunk,
        tile: u32,
    ) -> usize {
        let region = &self.calls[call];
        let tiled = |i: u32| {
            let rank = rank as usize * (form.inputs + form.outputs) as usize;
            region.tiled + tile as usize * region.per_tile + rank + i as usize
        };
        match chunk {
            Chunk::Scratch(i) => region.first + rank as usize * form.scratch as usize + i as usize,
            Chunk::Input(i) => tiled(i),
            Chunk::Output(i) => match self.shared(form, rank, i) {
                Some(input) => tiled(input),
                None => tiled(form.inputs + i),
            },
        }
    }

    fn shared(&self, form: &Form, rank: Rank, output: u32) -> Option<u32> {
        match self.placement {
            BufferPlacement::OutOfPlace => None,
            BufferPlacement::InPlace => {
                form.collective.in_place(form.nranks, form.parts, rank, output)
            }
        }
    }
}
