//! Memory of a device, and pinned memory for it, that communicators have given back.
//!
//! Freeing either waits for all work of the device, and so perhaps for a rank of this process that waits for the one which frees: so
//! nothing is freed before the last communicator on the device is gone, and what one leaves another one takes.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole_cuda::driver::{Buffer, Device, DriverError};
use maypole_cuda::memory::Pinned;
use maypole_cuda::stream::Relaxed;

/// What is free on a device.
pub(crate) struct Pool {
    device: Arc<Device>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    memory: Vec<Buffer>,
    pinned: Vec<Pinned>,
    /// What others may still write to: not to be given to anybody.
    retired: Vec<Buffer>,
}

impl Pool {
    pub(crate) fn new(device: &Arc<Device>) -> Arc<Self> {
        Arc::new(Self { device: device.clone(), free: Mutex::default() })
    }

    /// At least `bytes` of device memory, of any content, and not much more.
    pub(crate) fn memory(self: &Arc<Self>, bytes: usize) -> Result<Memory, DriverError> {
        let known = take(&mut self.free().memory, bytes, Buffer::bytes);
        let buffer = known.map_or_else(|| Buffer::new(&self.device, bytes), Ok)?;
        Ok(Memory { pool: self.clone(), buffer: Some(buffer) })
    }

    /// At least `bytes` of pinned memory, of any content, and not much more.
    pub(crate) fn pinned(self: &Arc<Self>, bytes: usize) -> Result<PinnedMemory, DriverError> {
        let known = take(&mut self.free().pinned, bytes, Pinned::bytes);
        let pinned = known.map_or_else(|| Pinned::new(&self.device, bytes), Ok)?;
        Ok(PinnedMemory { pool: self.clone(), pinned: Some(pinned) })
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // The lists are whole at all times.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Somebody else may be capturing. Where that cannot be told to the driver, it is not new enough to capture.
        let _relaxed = Relaxed::begin(self.device.driver());
        *self.free() = Free::default();
    }
}

/// The smallest of at least `bytes`, if there is one that would not waste more than that.
fn take<T>(free: &mut Vec<T>, bytes: usize, size: impl Fn(&T) -> usize) -> Option<T> {
    let fits = (0..free.len()).filter(|at| (bytes..=2 * bytes).contains(&size(&free[*at])));
    let at = fits.min_by_key(|at| size(&free[*at]))?;
    Some(free.swap_remove(at))
}

/// Device memory of a pool, which goes back there on drop: nothing may use it any more then.
pub(crate) struct Memory {
    pool: Arc<Pool>,
    /// Until it goes back.
    buffer: Option<Buffer>,
}

impl Memory {
    /// It is kept until the end of the device's last communicator: others may use it yet.
    pub(crate) fn retire(mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.free().retired.push(buffer);
        }
    }
}

impl Deref for Memory {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        self.buffer.as_ref().expect("until it goes back")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.free().memory.extend(self.buffer.take());
    }
}

/// Pinned memory of a pool, likewise.
pub(crate) struct PinnedMemory {
    pool: Arc<Pool>,
    /// Until it goes back.
    pinned: Option<Pinned>,
}

impl Deref for PinnedMemory {
    type Target = Pinned;

    fn deref(&self) -> &Pinned {
        self.pinned.as_ref().expect("until it goes back")
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.pool.free().pinned.extend(self.pinned.take());
    }
}
