//! A communicator's scratch chunks: one tile of memory each, kept between calls, grown when a plan needs more.

/// Memory for scratch chunks, and how long the content of each is.
#[derive(Default)]
pub(crate) struct ScratchMemory {
    /// Cache lines, so that chunks begin on one.
    memory: Vec<CacheLine>,
    /// Cache lines per chunk.
    stride: usize,
    /// Elements in each chunk.
    lens: Vec<usize>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl ScratchMemory {
    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.memory.capacity() * size_of::<CacheLine>()
    }

    /// Makes room for `chunks` chunks of `bytes` each. What they held is lost.
    pub(crate) fn prepare(&mut self, chunks: u32, bytes: usize) {
        self.stride = bytes.div_ceil(size_of::<CacheLine>());
        let lines = self.stride * chunks as usize;
        if self.memory.len() < lines {
            self.memory.resize(lines, CacheLine([0; 64]));
        }
        self.lens.clear();
        self.lens.resize(chunks as usize, 0);
    }

    /// First byte of memory for `chunks` chunks of `bytes` each, a multiple of a cache line, one after the other.
    #[inline]
    pub(crate) fn base(&mut self, chunks: u32, bytes: usize) -> *mut u8 {
        if self.memory.len() * size_of::<CacheLine>() < chunks as usize * bytes {
            self.prepare(chunks, bytes);
        }
        self.memory.as_mut_ptr().cast()
    }

    /// First byte of a chunk.
    pub(crate) fn chunk(&mut self, index: u32) -> *mut u8 {
        self.memory[index as usize * self.stride..].as_mut_ptr().cast()
    }

    /// Elements that the chunk holds.
    pub(crate) fn len_mut(&mut self, index: u32) -> &mut usize {
        &mut self.lens[index as usize]
    }
}
