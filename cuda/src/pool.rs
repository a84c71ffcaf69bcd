//! A pool of device memory and of pinned host memory, reused by the communicators of a process.
//!
//! Freeing either kind waits for all work of the device. A rank that frees memory would therefore
//! wait for a rank of the same process that in turn waits for it. For this reason nothing is freed
//! before the last user of the device is gone: memory that one communicator returns is given to
//! the next one.
//!
//! Allocating may wait too: for all work of the device and of its peers, depending on the driver.
//! So each communicator [reserves](DevicePool::reserve) memory before any rank launches work, and
//! what is needed later is a piece of that. Memory is allocated beside the reserve only when it is
//! used up.

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
    /// Allocations, and how many of their bytes were made pieces.
    device_reserve: Vec<(Arc<DeviceBuffer>, usize)>,
    pinned_reserve: Vec<(Arc<PinnedBuffer>, usize)>,
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

    /// Allocates memory unless so many bytes of device memory and of pinned memory are unused.
    ///
    /// # Errors
    /// The driver has no memory left.
    pub fn reserve(&self, device: usize, pinned: usize) -> Result<(), DriverError> {
        let mut free = self.free();
        let pieces: usize = free.device.iter().map(DeviceBuffer::bytes).sum();
        let left: usize = free.device_reserve.iter().map(|(all, used)| all.bytes() - used).sum();
        if pieces + left < device {
            let all = Arc::new(DeviceBuffer::new(&self.device, device)?);
            free.device_reserve.push((all, 0));
        }
        let pieces: usize = free.pinned.iter().map(PinnedBuffer::bytes).sum();
        let left: usize = free.pinned_reserve.iter().map(|(all, used)| all.bytes() - used).sum();
        if pieces + left < pinned {
            let all = Arc::new(PinnedBuffer::new(&self.device, pinned)?);
            free.pinned_reserve.push((all, 0));
        }
        Ok(())
    }

    /// Takes at least `bytes` and at most `2 * bytes` of device memory, of undefined content.
    ///
    /// # Errors
    /// The driver has no memory left.
    pub fn device_memory(self: &Arc<Self>, bytes: usize) -> Result<PooledBuffer, DriverError> {
        let mut free = self.free();
        let unused = take_smallest(&mut free.device, bytes, DeviceBuffer::bytes).or_else(|| {
            let (all, at) = next_piece(&mut free.device_reserve, bytes, 256, |all| all.bytes())?;
            Some(DeviceBuffer::piece(&all, at, bytes))
        });
        drop(free);
        let buffer = unused.map_or_else(|| DeviceBuffer::new(&self.device, bytes), Ok)?;
        Ok(PooledBuffer { pool: self.clone(), buffer: Some(buffer) })
    }

    /// As [`device_memory`](Self::device_memory), but an allocation of its own, which other
    /// processes can open.
    ///
    /// # Errors
    /// The driver has no memory left.
    pub fn shareable_memory(self: &Arc<Self>, bytes: usize) -> Result<PooledBuffer, DriverError> {
        let size = |buffer: &DeviceBuffer| if buffer.is_whole() { buffer.bytes() } else { 0 };
        let unused = take_smallest(&mut self.free().device, bytes.max(1), size);
        let buffer = unused.map_or_else(|| DeviceBuffer::new(&self.device, bytes), Ok)?;
        Ok(PooledBuffer { pool: self.clone(), buffer: Some(buffer) })
    }

    /// Takes at least `bytes` and at most `2 * bytes` of pinned memory, of undefined content.
    ///
    /// # Errors
    /// The driver has no pinned memory left.
    pub fn pinned_memory(self: &Arc<Self>, bytes: usize) -> Result<PooledPinned, DriverError> {
        let mut free = self.free();
        let unused = take_smallest(&mut free.pinned, bytes, PinnedBuffer::bytes).or_else(|| {
            let (all, at) = next_piece(&mut free.pinned_reserve, bytes, 4096, |all| all.bytes())?;
            Some(PinnedBuffer::piece(&all, at, bytes))
        });
        drop(free);
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

/// Makes `bytes` of one of these allocations a piece, at a multiple of `alignment`. Returns the
/// allocation and the offset.
fn next_piece<T>(
    reserve: &mut [(Arc<T>, usize)],
    bytes: usize,
    alignment: usize,
    size: impl Fn(&T) -> usize,
) -> Option<(Arc<T>, usize)> {
    reserve.iter_mut().find_map(|(all, used)| {
        let at = used.next_multiple_of(alignment);
        let end = at.checked_add(bytes).filter(|end| *end <= size(all))?;
        *used = end;
        Some((all.clone(), at))
    })
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
