//! Memory for buffers that ranks in other processes of the host read in place.
//!
//! A message between processes normally goes through a slot: the sender copies the message into it,
//! the receiver copies it out. A [`SharedBuffer`] can be mapped by the peer, which then copies or
//! folds the message directly from the memory of the sender. `maypole_transport` does the mapping
//! in its modules `segment` and `shm`. That a message may be lent instead of copied is part of what
//! is proved of every schedule.
//!
//! A peer maps a buffer when a part of it is first sent to the peer. Until then messages are
//! copied. [`Communicator::register`](crate::Communicator::register) maps it beforehand. Ordinary
//! memory cannot be shared with another process without moving it, so registering it does nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use maypole_transport::segment::Segment;

use crate::element::Element;
use crate::error::Error;

/// An owned buffer that begins at a page boundary. It is filled with zeros, which cost no memory
/// until they are touched.
///
/// Each buffer takes a file descriptor. If descriptors run short (more than half of what the
/// process may have are in use), or if the system refuses, the buffer is ordinary memory instead
/// (see [`is_shared`](Self::is_shared)). Everything works with ordinary memory too.
///
/// A child made by fork does not have the memory: an access there is a segmentation fault. Dropping
/// the buffer there does nothing.
///
/// ```
/// use maypole::memory::SharedBuffer;
///
/// let mut buffer = SharedBuffer::new(1 << 20)?;
/// buffer.elements_mut::<f32>().fill(1.0);
/// assert_eq!(buffer.elements::<f32>().len(), 1 << 18);
/// # Ok::<(), maypole::Error>(())
/// ```
pub struct SharedBuffer {
    start: NonNull<u8>,
    bytes: usize,
    owner: MemoryOwner,
}

/// What frees the memory.
enum MemoryOwner {
    Segment(#[expect(dead_code, reason = "it is kept to be dropped")] Segment),
    Allocator(Layout),
}

// SAFETY: the buffer owns its memory, as a vector does.
unsafe impl Send for SharedBuffer {}
// SAFETY: as above.
unsafe impl Sync for SharedBuffer {}

/// The least alignment of the memory.
const ALIGNMENT: usize = 4096;

impl SharedBuffer {
    /// Allocates `bytes` bytes.
    ///
    /// # Errors
    /// `bytes` is zero, or the memory cannot be allocated.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        if bytes == 0 {
            return Err(Error::InvalidArgument {
                what: "a buffer of zero bytes was requested; request at least one byte".into(),
            });
        }
        match Segment::new(bytes) {
            Ok(segment) => {
                let start = NonNull::new(segment.start());
                let start =
                    start.ok_or_else(|| Error::internal("a segment is mapped at address 0"))?;
                Ok(Self { start, bytes, owner: MemoryOwner::Segment(segment) })
            }
            Err(error) => {
                log::info!(
                    "a buffer of {bytes} bytes cannot be shared with other processes, so ordinary \
                     memory is used: {error}"
                );
                Self::ordinary(bytes)
            }
        }
    }

    /// Memory from the allocator, which peers cannot map.
    fn ordinary(bytes: usize) -> Result<Self, Error> {
        let none = || Error::System { call: "malloc", errno: libc::ENOMEM };
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| none())?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?;
        Ok(Self { start, bytes, owner: MemoryOwner::Allocator(layout) })
    }

    /// Whether peers can map the memory.
    pub fn is_shared(&self) -> bool {
        matches!(self.owner, MemoryOwner::Segment(_))
    }

    /// The address of the first byte. Unlike a slice, it may be used while other ranks write to the
    /// memory.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "no buffer is empty")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The address of the first byte, for calls that take pointers, and for memory that other ranks
    /// write to.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The buffer as a slice of as many elements as fit.
    pub fn elements<T: Element>(&self) -> &[T] {
        // SAFETY: the buffer owns the memory, which is initialized and aligned for every element
        // type, and every bit pattern is a value of each type.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / size_of::<T>())
        }
    }

    /// The buffer as a mutable slice of as many elements as fit.
    pub fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let len = self.bytes / size_of::<T>();
        // SAFETY: as in `elements`, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), len) }
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        if let MemoryOwner::Allocator(layout) = self.owner {
            // SAFETY: the memory was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

impl Deref for SharedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.elements()
    }
}

impl DerefMut for SharedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.elements_mut()
    }
}

impl fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, bytes, .. } = self;
        write!(
            f,
            "SharedBuffer({bytes} bytes at {start:p}, {})",
            if self.is_shared() { "shared" } else { "ordinary" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_memory_are_zeroed_aligned_and_writable() {
        for make in [SharedBuffer::new, SharedBuffer::ordinary] {
            let mut buffer = make(10_001).unwrap();
            assert!(buffer.as_mut_ptr().addr().is_multiple_of(ALIGNMENT));
            assert_eq!((buffer.len(), buffer.elements::<f64>().len()), (10_001, 1250));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert_eq!(buffer.elements::<i32>()[2499], 0x0707_0707);
        }
        assert!(SharedBuffer::new(100).unwrap().is_shared());
        assert!(!SharedBuffer::ordinary(100).unwrap().is_shared());
        assert!(SharedBuffer::new(0).is_err() && SharedBuffer::new(usize::MAX).is_err());
        assert!(SharedBuffer::new(isize::MAX as usize - 5000).is_err());
    }
}
