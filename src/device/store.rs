//! Device memory for the programs of a communicator. What a program leaves is used again by the next one, once no work uses it.

use std::sync::{Arc, Mutex, PoisonError};

use maypole_cuda::driver::DriverError;

use super::pool::{Memory, PinnedMemory, Pool};

/// The smallest block.
const LEAST: usize = 4 << 10;

/// Memory for a program, on the device and, for its way there, on the host.
pub(crate) struct Block {
    pub(crate) memory: Memory,
    pub(crate) staging: PinnedMemory,
}

/// A communicator's blocks that no program has.
pub(crate) struct Store {
    pool: Arc<Pool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With the number of the last work that used it.
    free: Vec<(Block, u64)>,
    /// Of graphs, which may be replayed as long as the communicator lives.
    kept: Vec<Block>,
    /// Bytes of all blocks, on the device.
    held: usize,
}

impl Store {
    pub(crate) fn new(pool: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { pool: pool.clone(), state: Mutex::default() })
    }

    /// A block of at least `bytes`. One that was used is given only if no work after `finished` uses it.
    pub(crate) fn take(&self, bytes: usize, finished: u64) -> Result<Block, DriverError> {
        let bytes = bytes.max(LEAST).next_power_of_two();
        let mut state = self.state();
        let fits = |(block, last): &(Block, u64)| {
            block.memory.bytes() >= bytes && block.memory.bytes() <= 2 * bytes && *last <= finished
        };
        if let Some(at) = state.free.iter().position(fits) {
            return Ok(state.free.swap_remove(at).0);
        }
        let block = Block { memory: self.pool.memory(bytes)?, staging: self.pool.pinned(bytes)? };
        state.held += bytes;
        Ok(block)
    }

    /// Takes a block back, whose last use is work number `last`.
    pub(crate) fn give(&self, block: Block, last: u64) {
        self.state().free.push((block, last));
    }

    /// Takes a block back that a graph uses.
    pub(crate) fn keep(&self, block: Block) {
        self.state().kept.push(block);
    }

    /// Bytes of device memory.
    pub(crate) fn held(&self) -> usize {
        self.state().held
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The lists are whole at all times.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
