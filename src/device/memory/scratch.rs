//! Device memory for the scratch chunks of a communicator. All its works share this memory: they
//! run one after the other.

use std::sync::Arc;

use maypole_cuda::driver::DriverError;
use maypole_cuda::pool::{DevicePool, PooledBuffer};
use maypole_cuda::stream::RelaxedCapture;

/// Memory for scratch chunks. It grows when a plan needs more.
#[derive(Default)]
pub(in crate::device) struct DeviceScratch {
    memory: Option<PooledBuffer>,
    /// Earlier memory that became too small. Works that still run and graphs use it. Together it
    /// is no larger than `memory`, because each growth at least doubles the size.
    outgrown: Vec<PooledBuffer>,
}

impl DeviceScratch {
    /// The address of at least `bytes` of scratch memory.
    pub(in crate::device) fn prepare(
        &mut self,
        pool: &Arc<DevicePool>,
        bytes: usize,
    ) -> Result<u64, DriverError> {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            let _relaxed = RelaxedCapture::begin(pool.device().driver())?;
            let larger = pool.device_memory(bytes.next_power_of_two())?;
            self.outgrown.extend(self.memory.replace(larger));
        }
        Ok(self.memory.as_ref().map_or(0, |memory| memory.address()))
    }

    /// Bytes of device memory.
    pub(in crate::device) fn bytes(&self) -> usize {
        self.memory.iter().chain(&self.outgrown).map(|memory| memory.bytes()).sum()
    }
}
