//! Scratch chunks of a communicator in device memory. All its works use the same: they follow each other.

use maypole_cuda::driver::DriverError;
use maypole_cuda::stream::Relaxed;

use super::gpu::Gpu;
use super::pool::Memory;

/// Memory for scratch chunks, grown when a plan needs more.
#[derive(Default)]
pub(crate) struct Scratch {
    memory: Option<Memory>,
    /// What was too small. Works that are under way use it, and graphs; all of it together is no more than what there is now.
    outgrown: Vec<Memory>,
}

impl Scratch {
    /// Address of at least `bytes`, which works use one after the other.
    pub(crate) fn prepare(&mut self, gpu: &Gpu, bytes: usize) -> Result<u64, DriverError> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            let _relaxed = Relaxed::begin(gpu.device.driver())?;
            let larger = gpu.pool.memory(bytes.next_power_of_two())?;
            self.outgrown.extend(self.memory.replace(larger));
        }
        Ok(self.memory.as_ref().map_or(0, |memory| memory.address()))
    }

    /// Bytes of device memory.
    pub(crate) fn held(&self) -> usize {
        self.memory.iter().chain(&self.outgrown).map(|memory| memory.bytes()).sum()
    }
}
