//! The slots of one link over TCP, in memory of this process. A slot is allocated when it is first
//! used.
//!
//! The sender keeps a message until its release is acknowledged, so that it can send it again on
//! another stream; a message that lends memory of the caller lies there as long. The receiver puts
//! messages from all streams into sequence and takes each once. It may post memory for the first
//! message that it has not released, which is then stored there instead of in a slot.

mod receive;
mod send;

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

pub(crate) use self::receive::{CompleteMessage, ReceiveRing, StoreDecision, WithdrawnMessage};
pub(crate) use self::send::{EMPTY_MESSAGE, LentMemory, SendRing, SentMessage};
use crate::Sequence;

/// The memory of a slot, uninitialized at first.
#[derive(Debug)]
struct SlotBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a buffer owns its memory.
unsafe impl Send for SlotBuffer {}

impl SlotBuffer {
    /// None if the process has no memory left.
    fn new(bytes: usize) -> Option<Self> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(64));
        let layout = Layout::from_size_align(bytes, 64).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        Some(Self { start, layout })
    }
}

impl Drop for SlotBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[derive(Debug, Default)]
struct SlotBuffers {
    buffers: Vec<Option<SlotBuffer>>,
    bytes: usize,
}

impl SlotBuffers {
    fn new(depth: u32, bytes: usize) -> Self {
        Self { buffers: (0..depth).map(|_| None).collect(), bytes }
    }

    fn index(&self, sequence: Sequence) -> usize {
        ((sequence - 1) % self.buffers.len() as u64) as usize
    }

    /// The address of the slot, which is allocated if it is not there. None if the process has no
    /// memory left.
    fn allocate(&mut self, sequence: Sequence) -> Option<*mut u8> {
        let (index, bytes) = (self.index(sequence), self.bytes);
        let buffer = &mut self.buffers[index];
        if buffer.is_none() {
            *buffer = SlotBuffer::new(bytes);
        }
        buffer.as_ref().map(|buffer| buffer.start.as_ptr())
    }

    /// The address of a slot that has been allocated.
    fn address(&self, sequence: Sequence) -> *mut u8 {
        let buffer = self.buffers[self.index(sequence)].as_ref();
        buffer.expect("a message lies in a slot that was allocated for it").start.as_ptr()
    }
}
