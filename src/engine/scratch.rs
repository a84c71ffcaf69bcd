//! The scratch memory of a communicator: one tile per chunk, kept between calls, and grown when a
//! plan needs more. Beside it, the copy of a send buffer that a call would overwrite.
//!
//! How much memory is needed follows from the call. If there is none, the call fails, and the
//! process goes on.

use crate::error::Error;

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
    ///
    /// # Errors
    /// The process has no memory left.
    pub(crate) fn prepare(&mut self, chunks: u32, bytes: usize) -> Result<(), Error> {
        self.stride = bytes.div_ceil(size_of::<CacheLine>());
        let lines = self.stride * chunks as usize;
        if self.memory.len() < lines {
            make_room(&mut self.memory, lines)?;
            self.memory.resize(lines, CacheLine([0; 64]));
        }
        Ok(())
    }

    /// The first byte of memory for `chunks` chunks of `bytes` bytes each, one after the other.
    /// `bytes` is a multiple of a cache line.
    ///
    /// # Errors
    /// The process has no memory left.
    #[inline]
    pub(crate) fn base(&mut self, chunks: u32, bytes: usize) -> Result<*mut u8, Error> {
        if self.memory.len() * size_of::<CacheLine>() < chunks as usize * bytes {
            self.prepare(chunks, bytes)?;
        }
        Ok(self.memory.as_mut_ptr().cast())
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
    /// # Errors
    /// The process has no memory left.
    ///
    /// # Safety
    /// Each range is valid for its number of bytes.
    pub(crate) unsafe fn of(
        &mut self,
        sends: impl Iterator<Item = (*const u8, usize)> + Clone,
    ) -> Result<*const u8, Error> {
        make_room(&mut self.memory, sends.clone().map(|(_, bytes)| bytes).sum())?;
        for (data, bytes) in sends {
            if bytes > 0 {
                // SAFETY: the caller's promise. The slice ends before anything writes to the range.
                self.memory.extend_from_slice(unsafe { std::slice::from_raw_parts(data, bytes) });
            }
        }
        Ok(self.memory.as_ptr())
    }
}

/// Empties `memory` and makes room for `len` elements. What is too small is freed first.
fn make_room<T>(memory: &mut Vec<T>, len: usize) -> Result<(), Error> {
    memory.clear();
    if memory.capacity() < len {
        *memory = Vec::new();
        let none = |_| Error::System { call: "malloc", errno: libc::ENOMEM };
        memory.try_reserve_exact(len).map_err(none)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_does_not_exist_is_an_error() {
        let none = Err(Error::System { call: "malloc", errno: libc::ENOMEM });
        let mut scratch = ScratchMemory::default();
        assert_eq!(scratch.prepare(4, 1 << 60), none);
        assert_eq!(scratch.base(3, 64).map(|start| start.addr() % 64), Ok(0));
        let mut copy = SendCopy::default();
        let data = [1_u8, 2, 3];
        // SAFETY: the first range is not read, because there is no room for it.
        let copied = unsafe { copy.of([(data.as_ptr(), 1 << 62)].into_iter()) };
        assert_eq!(copied, none.map(|()| data.as_ptr()));
        // SAFETY: the ranges are in `data`, and the copy is valid until the next one.
        let copied = unsafe {
            let ranges = [(data[1..].as_ptr(), 2), (data.as_ptr(), 1)];
            copy.of(ranges.into_iter()).map(|start| std::slice::from_raw_parts(start, 3))
        };
        assert_eq!(copied, Ok(&[2, 3, 1][..]));
    }
}
