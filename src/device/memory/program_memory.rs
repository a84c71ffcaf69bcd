//! Device memory for the programs of a communicator. The memory of a dropped program is used for
//! a later one, after the last work that uses the dropped program has finished.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole_cuda::driver::{Device, DriverError};
use maypole_cuda::pool::{DevicePool, PooledBuffer, PooledPinned};

/// Bytes of the smallest block.
const SMALLEST: usize = 4 << 10;

/// The memory of one program: on the device, and on the host from where it is copied there.
pub(in crate::device) struct ProgramBlock {
    pub(in crate::device) memory: PooledBuffer,
    pub(in crate::device) staging: PooledPinned,
}

/// The blocks of a communicator that no program uses.
pub(in crate::device) struct ProgramMemory {
    pool: Arc<DevicePool>,
    blocks: Mutex<FreeBlocks>,
}

#[derive(Default)]
struct FreeBlocks {
    /// Each block with the number of the last work that uses it.
    free: Vec<(ProgramBlock, u64)>,
    /// Blocks that graphs use. A graph may be replayed as long as the communicator exists.
    captured: Vec<ProgramBlock>,
    /// Bytes of device memory of all blocks, of those in use too.
    bytes: usize,
}

impl ProgramMemory {
    pub(in crate::device) fn new(pool: &Arc<DevicePool>) -> Arc<Self> {
        Arc::new(Self { pool: pool.clone(), blocks: Mutex::default() })
    }

    pub(in crate::device) fn device(&self) -> &Arc<Device> {
        self.pool.device()
    }

    /// Takes a block of at least `bytes`. A block is reused only if no work with a number above
    /// `finished` uses it.
    pub(in crate::device) fn take(
        &self,
        bytes: usize,
        finished: u64,
    ) -> Result<ProgramBlock, DriverError> {
        let bytes = bytes.max(SMALLEST).next_power_of_two();
        let mut blocks = self.blocks();
        let fits = |(block, last): &(ProgramBlock, u64)| {
            block.memory.bytes() >= bytes && block.memory.bytes() <= 2 * bytes && *last <= finished
        };
        if let Some(index) = blocks.free.iter().position(fits) {
            return Ok(blocks.free.swap_remove(index).0);
        }
        let block = ProgramBlock {
            memory: self.pool.device_memory(bytes)?,
            staging: self.pool.pinned_memory(bytes)?,
        };
        blocks.bytes += bytes;
        Ok(block)
    }

    /// Takes back a block whose last use is work number `last`.
    pub(in crate::device) fn give_back(&self, block: ProgramBlock, last: u64) {
        self.blocks().free.push((block, last));
    }

    /// Takes back a block that a graph uses; it is not given to another program.
    pub(in crate::device) fn keep_captured(&self, block: ProgramBlock) {
        self.blocks().captured.push(block);
    }

    /// Bytes of device memory of all blocks.
    pub(in crate::device) fn bytes(&self) -> usize {
        self.blocks().bytes
    }

    fn blocks(&self) -> MutexGuard<'_, FreeBlocks> {
        // A thread that panicked cannot have left the lists half changed.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
