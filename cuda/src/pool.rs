//! A pool of device memory and of pinned host memory, reused by the communicators of a process.
//!
//! Freeing either kind waits for all work of the device. A rank that frees memory would therefore
//! wait for a rank of the same process that in turn waits for it. For this reason nothing is freed
//! before the last user of the device is gone: memory that one communicator returns is given to
//! the next one.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::driver::{Device, DriverError};
use crate::memory::{DeviceBuffer, PinnedBuffer};
use crate::stream::RelaxedCapture;

/// The unused memory of one device. It is freed when the pool is dropped.
pub struct DevicePool {
    device: Arc<Device>,
    free: Mutex<FreeMemory>,
}

#[derive(Default)]
struct FreeMemory {
    device: Vec<DeviceBuffer>,
    pinned: Vec<PinnedBuffer>,
    /// Buffers to which other processes may still write: these are never reused.
    retired: Vec<DeviceBuffer>,
}

impl DevicePool {
    /// An empty pool for `device`.
    pub fn new(device: &Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device: device.clone(), free: Mutex::default() })
    }

    /// The device that the memory belongs to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Takes at least `bytes` and at most `2 * bytes` of device memory, of undefined content.
    ///
    /// # Errors
    /// The driver has no memory left.
    pub fn device_memory(self: &Arc<Self>, bytes: usize) -> Result<PooledBuffer, DriverError> {
        let unused = take_smallest(&mut self.free().device, bytes, DeviceBuffer::bytes);
        let buffer = unused.map_or_else(|| DeviceBuffer::new(&self.device, bytes), Ok)?;
        Ok(PooledBuffer { pool: self.clone(), buffer: Some(buffer) })
    }

    /// Takes at least `bytes` and at most `2 * bytes` of pinned memory, of undefined content.
    ///
    /// # Errors
    /// The driver has no pinned memory left.
    pub fn pinned_memory(self: &Arc<Self>, bytes: usize) -> Result<PooledPinned, DriverError> {
        let unused = take_smallest(&mut self.free().pinned, bytes, PinnedBuffer::bytes);
        let pinned = unused.map_or_else(|| PinnedBuffer::new(&self.device, bytes), Ok)?;
        Ok(PooledPinned { pool: self.clone(), pinned: Some(pinned) })
    }

    fn free(&self) -> MutexGuard<'_, FreeMemory> {
        // A thread that panicked cannot have left the lists half changed.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DevicePool {
    fn drop(&mut self) {
        // Another thread may be capturing. A driver without this function cannot capture either.
        let _relaxed = RelaxedCapture::begin(self.device.driver());
        *self.free() = FreeMemory::default();
    }
}

/// Removes the smallest item of at least `bytes`, unless all of them are longer than `2 * bytes`.
fn take_smallest<T>(free: &mut Vec<T>, bytes: usize, size: impl Fn(&T) -> usize) -> Option<T> {
    let fits = (0..free.len()).filter(|index| (bytes..=2 * bytes).contains(&size(&free[*index])));
    let smallest = fits.min_by_key(|index| size(&free[*index]))?;
    Some(free.swap_remove(smallest))
}

/// Device memory of a pool. It returns to the pool on drop; nothing may use it after that.
pub struct PooledBuffer {
    pool: Arc<DevicePool>,
    /// Present until the buffer returns to the pool.
    buffer: Option<DeviceBuffer>,
}

impl PooledBuffer {
    /// Keeps the buffer out of use until the pool ends: other processes may still write to it.
    pub fn retire(mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.free().retired.push(buffer);
        }
    }
}

impl Deref for PooledBuffer {
    type Target = DeviceBuffer;

    fn deref(&self) -> &DeviceBuffer {
        self.buffer.as_ref().expect("the buffer is present until it returns to the pool")
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.free().device.extend(self.buffer.take());
    }
}

/// Pinned memory of a pool. It returns to the pool on drop; nothing may use it after that.
pub struct PooledPinned {
    pool: Arc<DevicePool>,
    /// Present until the memory returns to the pool.
    pinned: Option<PinnedBuffer>,
}

impl Deref for PooledPinned {
    type Target = PinnedBuffer;

    fn deref(&self) -> &PinnedBuffer {
        self.pinned.as_ref().expect("the memory is present until it returns to the pool")
    }
}

impl Drop for PooledPinned {
    fn drop(&mut self) {
        self.pool.free().pinned.extend(self.pinned.take());
    }
}
