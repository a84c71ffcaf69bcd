//! Memory of the fabric for rings whose size the user chooses, as words.

use super::lock::{Lock, Plain};
use crate::sync::{AtomicU64, Relaxed};

/// Words of the heap, 1 GiB; only what was used takes memory.
const WORDS: usize = 1 << 27;
/// Sizes are powers of two, from 8 words.
const CLASSES: usize = 28;

#[repr(C)]
pub(crate) struct Heap {
    state: Lock<State>,
    words: [AtomicU64; WORDS],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct State {
    /// The first word that was never given out.
    fresh: u64,
    /// For each class, the first free piece plus one; the first word of a piece leads to the next.
    free: [u64; CLASSES],
}

impl Plain for State {}

/// A piece of the heap.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Piece {
    start: u64,
    /// Number of words; 0 if there is none.
    words: u64,
}

impl Heap {
    /// A piece of at least `words` words with zeros, or none if the heap is full.
    pub(crate) fn allocate(&self, words: usize) -> Option<Piece> {
        let class = class(words);
        if class >= CLASSES {
            return None;
        }
        let size = 1u64 << class;
        let start = {
            let mut state = self.state.lock();
            let first = state.free[class];
            if first != 0 {
                state.free[class] = self.words[first as usize - 1].load(Relaxed);
                first - 1
            } else {
                let start = state.fresh;
                if start + size > WORDS as u64 {
                    return None;
                }
                state.fresh = start + size;
                return Some(Piece { start, words: size });
            }
        };
        let piece = Piece { start, words: size };
        for word in self.words(piece) {
            word.store(0, Relaxed);
        }
        Some(piece)
    }

    pub(crate) fn free(&self, piece: Piece) {
        if piece.words == 0 {
            return;
        }
        let mut state = self.state.lock();
        let class = class(piece.words as usize);
        self.words[piece.start as usize].store(state.free[class], Relaxed);
        state.free[class] = piece.start + 1;
    }

    /// The words of a piece.
    pub(crate) fn words(&self, piece: Piece) -> &[AtomicU64] {
        &self.words[piece.start as usize..][..piece.words as usize]
    }
}

fn class(words: usize) -> usize {
    (words.max(8)).next_power_of_two().trailing_zeros() as usize
}
