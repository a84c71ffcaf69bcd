//! The memory that is sent and received, from the allocator or the library, with guard bytes on
//! both sides. It is filled and compared here.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use maypole::memory;

use crate::operation::work::ExpectedElements;
use crate::options::BufferMemory;

/// Bytes of a guard on one side.
const GUARD: usize = 256;

/// The content of guard bytes.
const GUARD_BYTE: u8 = 0xa7;

/// The content of a receive buffer before a call, so that old results do not count as new ones.
const STALE_BYTE: u8 = 0x5c;

/// A payload of up to a fixed number of bytes between two guards.
///
/// It is raw memory rather than a vector, because the library gets pointers into it, and in place
/// two pointers to overlapping parts.
pub(crate) struct GuardedBuffer {
    base: NonNull<u8>,
    layout: Layout,
    /// The library's buffer that owns the memory; None if the allocator does.
    library: Option<memory::SharedBuffer>,
    /// The offset of the payload.
    start: usize,
    /// Bytes of the payload in use.
    len: usize,
    /// The most bytes of the payload that were ever in use.
    touched: usize,
}

impl GuardedBuffer {
    /// A buffer for up to `capacity` bytes, which begins `shift` bytes after the start of a page.
    pub(crate) fn new(capacity: usize, shift: usize, memory: BufferMemory) -> Self {
        // The first guard lies in a page of its own, so that the payload can begin at a page.
        const PAGE: usize = 4096;
        let layout = Layout::from_size_align(PAGE + shift + capacity + GUARD, PAGE)
            .expect("the size has been checked against the memory of the machine");
        let mut library = match memory {
            BufferMemory::Allocator => None,
            BufferMemory::Library => memory::SharedBuffer::new(layout.size()).ok(),
        };
        let base = match &mut library {
            Some(library) => library.as_mut_ptr(),
            // SAFETY: the layout has at least a page, so its size is not 0.
            None => unsafe { alloc_zeroed(layout) },
        };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout, library, start: PAGE + shift, len: 0, touched: 0 }
    }

    /// A buffer without a payload.
    pub(crate) fn empty() -> Self {
        Self::new(0, 0, BufferMemory::Allocator)
    }

    /// The whole memory: its first byte and its length.
    pub(crate) fn region(&self) -> (*const u8, usize) {
        (self.base.as_ptr(), self.layout.size())
    }

    /// Makes the payload `len` bytes long, fills it with old data and sets the guards around it.
    pub(crate) fn prepare(&mut self, len: usize) {
        self.len = len;
        self.touched = self.touched.max(len);
        let (start, all) = (self.start, self.all());
        all[start - GUARD..start].fill(GUARD_BYTE);
        all[start..start + len].fill(STALE_BYTE);
        all[start + len..start + len + GUARD].fill(GUARD_BYTE);
    }

    /// Writes `len` elements of `element` bytes each, from element `at` on. `source` is one period
    /// of the data, which is repeated.
    pub(crate) fn fill(&mut self, source: &[u8], at: usize, len: usize, element: usize) {
        let to = &mut self.payload()[at * element..][..len * element];
        if !to.is_empty() {
            to.chunks_mut(source.len())
                .for_each(|chunk| chunk.copy_from_slice(&source[..chunk.len()]));
        }
    }

    /// Writes the payload with its present content, so that this processor owns all its cache
    /// lines.
    pub(crate) fn rewrite(&mut self) {
        for line in self.payload().chunks_mut(64) {
            let first = &raw mut line[0];
            // SAFETY: `first` points to a byte of the payload, which is borrowed mutably. The
            // access is volatile, because a write that changes nothing could be optimized away.
            unsafe { first.write_volatile(first.read_volatile()) };
        }
    }

    /// The most bytes of a payload.
    pub(crate) fn capacity(&self) -> usize {
        self.layout.size() - self.start - GUARD
    }

    /// The most bytes that were ever in use, and so occupy memory.
    pub(crate) fn touched(&self) -> usize {
        self.touched
    }

    /// The address of the payload.
    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.payload().as_mut_ptr()
    }

    /// How many elements of `element` bytes, from element `at` on, differ from `expected`.
    pub(crate) fn wrong_elements(
        &mut self,
        expected: &[ExpectedElements],
        at: usize,
        element: usize,
    ) -> u64 {
        let mut payload = &self.payload()[at * element..];
        let mut wrong = 0;
        for piece in expected.iter().flat_map(|e| e.pieces(element)) {
            let (mine, rest) = payload.split_at(piece.len());
            payload = rest;
            // The fast comparison first: almost always the whole piece is right.
            if mine != piece {
                let pairs = mine.chunks_exact(element).zip(piece.chunks_exact(element));
                wrong += pairs.filter(|(a, b)| a != b).count() as u64;
            }
        }
        wrong
    }

    /// How many bytes of the guards are damaged.
    pub(crate) fn damaged_guard_bytes(&mut self) -> u64 {
        let (start, end) = (self.start, self.start + self.len);
        let all = self.all();
        let guards = all[start - GUARD..start].iter().chain(&all[end..end + GUARD]);
        guards.filter(|&&byte| byte != GUARD_BYTE).count() as u64
    }

    /// Inverts the last of the first `len` bytes of the payload, if there are any, to test the
    /// check.
    pub(crate) fn corrupt(&mut self, len: usize) {
        if let Some(byte) = self.payload()[..len].last_mut() {
            *byte = !*byte;
        }
    }

    fn payload(&mut self) -> &mut [u8] {
        let (start, len) = (self.start, self.len);
        &mut self.all()[start..start + len]
    }

    fn all(&mut self) -> &mut [u8] {
        // SAFETY: this buffer owns the memory, which is initialized and has this size. Only calls
        // of the library use it through pointers, and these calls end before they return.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for GuardedBuffer {
    fn drop(&mut self) {
        if self.library.is_none() {
            // SAFETY: the memory was allocated with this layout and is freed once.
            unsafe { dealloc(self.base.as_ptr(), self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::data::{PERIOD, TestData};

    const COUNT: usize = PERIOD + 100;

    fn filled() -> (GuardedBuffer, Vec<ExpectedElements>) {
        let data = TestData { dtype: DType::Float32, op: Some(RedOp::Sum), nranks: 3, seed: 1 };
        let source = data.reduced(COUNT);
        let mut buffer = GuardedBuffer::new(4 * COUNT, 4, BufferMemory::Library);
        buffer.prepare(4 * COUNT);
        buffer.fill(&source, 0, COUNT, 4);
        (buffer, vec![ExpectedElements { source, start: 0, len: COUNT }])
    }

    #[test]
    fn right_values_and_intact_guards_pass() {
        let (mut buffer, expected) = filled();
        assert_eq!((buffer.wrong_elements(&expected, 0, 4), buffer.damaged_guard_bytes()), (0, 0));
    }

    #[test]
    fn each_flipped_bit_is_one_wrong_element() {
        for at in [0, 3, 4 * PERIOD - 1, 4 * PERIOD, 4 * COUNT - 1] {
            let (mut buffer, expected) = filled();
            buffer.payload()[at] ^= 1;
            assert_eq!(buffer.wrong_elements(&expected, 0, 4), 1, "byte {at}");
        }
        let (mut buffer, expected) = filled();
        buffer.corrupt(4 * COUNT);
        assert_eq!(buffer.wrong_elements(&expected, 0, 4), 1);
    }

    #[test]
    fn old_and_misplaced_data_is_wrong() {
        let (mut buffer, expected) = filled();
        buffer.prepare(4 * COUNT);
        assert_eq!(buffer.wrong_elements(&expected, 0, 4), COUNT as u64);
        let source = expected[0].source.clone();
        buffer.fill(&source, 1, COUNT - 1, 4);
        assert!(buffer.wrong_elements(&expected, 0, 4) > COUNT as u64 / 2);
    }

    #[test]
    fn damage_of_a_guard_is_counted_on_both_sides() {
        for at in [-1, -(GUARD as isize), 4 * COUNT as isize, 4 * COUNT as isize + 255] {
            let (mut buffer, _) = filled();
            let index = buffer.start.checked_add_signed(at).unwrap();
            buffer.all()[index] = 0;
            assert_eq!(buffer.damaged_guard_bytes(), 1, "{at}");
        }
    }

    #[test]
    fn rewriting_changes_nothing() {
        let (mut buffer, expected) = filled();
        buffer.rewrite();
        assert_eq!((buffer.wrong_elements(&expected, 0, 4), buffer.damaged_guard_bytes()), (0, 0));
    }

    #[test]
    fn an_empty_payload_is_valid() {
        let mut buffer = GuardedBuffer::new(0, 0, BufferMemory::Allocator);
        buffer.prepare(0);
        buffer.rewrite();
        buffer.fill(&[], 0, 0, 4);
        buffer.corrupt(0);
        assert_eq!((buffer.wrong_elements(&[], 0, 4), buffer.damaged_guard_bytes()), (0, 0));
    }
}
