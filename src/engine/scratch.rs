//! The scratch memory of a communicator: one tile per chunk, kept between calls, and grown when a
//! plan needs more. Beside it, the copy of a send buffer that a call would overwrite.

/// Memory for scratch chunks.
#[derive(Default)]
pub(crate) struct ScratchMemory {
    /// The memory as cache lines, so that each chunk begins on one.
    memory: Vec<CacheLine>,
    /// Cache lines per chunk.
    stride: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl ScratchMemory {
    /// Bytes of memory that are held.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity() * size_of::<CacheLine>()
    }

    /// Makes room for `chunks` chunks of `bytes` bytes each. Their content is lost.
    pub(crate) fn prepare(&mut self, chunks: u32, bytes: usize) {
        self.stride = bytes.div_ceil(size_of::<CacheLine>());
        let lines = self.stride * chunks as usize;
        if self.memory.len() < lines {
            self.memory.resize(lines, CacheLine([0; 64]));
        }
    }

    /// The first byte of memory for `chunks` chunks of `bytes` bytes each, one after the other.
    /// `bytes` is a multiple of a cache line.
    #[inline]
    pub(crate) fn base(&mut self, chunks: u32, bytes: usize) -> *mut u8 {
        if self.memory.len() * size_of::<CacheLine>() < chunks as usize * bytes {
            self.prepare(chunks, bytes);
        }
        self.memory.as_mut_ptr().cast()
    }

    /// The first byte of a chunk.
    pub(crate) fn chunk(&mut self, index: u32) -> *mut u8 {
        self.memory[index as usize * self.stride..].as_mut_ptr().cast()
    }
}

/// A copy of a send buffer, for a call that overwrites what it has not sent yet. The memory is kept
/// between calls.
#[derive(Default)]
pub(crate) struct SendCopy {
    memory: Vec<u8>,
}

impl SendCopy {
    /// Bytes of memory that are held.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity()
    }

    /// Copies these ranges, one after the other. The result is valid until the next copy.
    ///
    /// # Safety
    /// Each range is valid for its number of bytes.
    pub(crate) unsafe fn of(
        &mut self,
        sends: impl IntoIterator<Item = (*const u8, usize)>,
    ) -> *const u8 {
        self.memory.clear();
        for (data, bytes) in sends {
            if bytes > 0 {
                // SAFETY: the caller's promise. The slice ends before anything writes to the range.
                self.memory.extend_from_slice(unsafe { std::slice::from_raw_parts(data, bytes) });
            }
        }
        self.memory.as_ptr()
    }
}
