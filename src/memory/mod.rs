//! Memory for buffers that ranks of other processes of the host read in place.
//!
//! Ordinary memory of another process goes through slots: the sender copies it in, the receiver out. What lies in a [`SharedBuffer`] is mapped by
//! the peer, so that the receiver takes it, or folds it, from where it is. Who maps what, and when, is `maypole_transport::segment`'s and
//! `shm`'s; that a message may be lent instead of copied is part of what is proved of every schedule.
//!
//! A peer maps a buffer when something of it is first sent to it; until it has, messages are copied.
//! [`Communicator::register`](crate::Communicator::register) does it beforehand. Ordinary memory cannot be given to another process
//! without moving it, so registering that does nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use maypole_transport::segment::Segment;

use crate::element::Element;
use crate::error::Error;

/// Owned bytes, from a page boundary on, zeros at first, which cost no memory until they are touched.
///
/// Each takes a file descriptor. Where those run short (more than half of what the process may have are in use), and where the system refuses,
/// it is ordinary memory instead ([`is_shared`](Self::is_shared)); everything works with that too.
///
/// A child made by fork does not have the memory: an access there is a segmentation fault. Dropping it there does nothing.
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
    owner: Owner,
}

/// Who gives the memory back.
enum Owner {
    Segment(#[expect(dead_code, reason = "its drop is what it is for")] Segment),
    Allocator(Layout),
}

// SAFETY: it owns its memory, as a vector does.
unsafe impl Send for SharedBuffer {}
// SAFETY: as above.
unsafe impl Sync for SharedBuffer {}

/// What the memory is aligned to at least.
const ALIGNMENT: usize = 4096;

impl SharedBuffer {
    /// `bytes` bytes.
    ///
    /// # Errors
    /// No bytes; no memory.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        if bytes == 0 {
            return Err(Error::InvalidArgument { what: "a buffer of no bytes".into() });
        }
        match Segment::new(bytes) {
            Ok(segment) => {
                let start = NonNull::new(segment.start());
                let start = start.ok_or_else(|| Error::internal("memory at address 0"))?;
                Ok(Self { start, bytes, owner: Owner::Segment(segment) })
            }
            Err(error) => {
                log::info!("a buffer of {bytes} bytes is ordinary memory: {error}");
                Self::ordinary(bytes)
            }
        }
    }

    /// From the allocator.
    fn ordinary(bytes: usize) -> Result<Self, Error> {
        let none = || Error::System { call: "malloc", errno: libc::ENOMEM };
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| none())?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?;
        Ok(Self { start, bytes, owner: Owner::Allocator(layout) })
    }

    /// Whether peers can map it.
    pub fn is_shared(&self) -> bool {
        matches!(self.owner, Owner::Segment(_))
    }

    /// First byte. Unlike a slice of it, it may be used while others write to the memory.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// First byte, for calls that take pointers, and for memory that others write to.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// As many elements as fit.
    pub fn elements<T: Element>(&self) -> &[T] {
        // SAFETY: the memory is ours, initialized, and aligned for every element; all bits are a value of each.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / size_of::<T>())
        }
    }

    /// As many elements as fit, to be written.
    pub fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let len = self.bytes / size_of::<T>();
        // SAFETY: as in `elements`, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), len) }
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        if let Owner::Allocator(layout) = self.owner {
            // SAFETY: allocated with this layout.
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
    fn both_kinds_are_zeroed_aligned_and_writable() {
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
