//! The memory that is sent and received: from the allocator or the library, with guards on both sides, filled and compared here.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use maypole::memory;

use crate::operation::work::Expected;
use crate::options::Memory;

/// Bytes of a guard.
const GUARD: usize = 256;

/// What a guard holds.
const GUARD_BYTE: u8 = 0xa7;

/// What a receive buffer holds before a checked call, so that stale results do not count as new ones.
const STALE_BYTE: u8 = 0x5c;

/// Memory for up to a fixed number of bytes between two guards.
///
/// Raw memory rather than a vector, because the library is given pointers into it, in place two overlapping ones.
pub(crate) struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
    /// Whose memory it is, unless the allocator's.
    library: Option<memory::SharedBuffer>,
    /// Where the payload begins.
    start: usize,
    /// Bytes of the payload in use.
    len: usize,
    /// The most that were ever in use.
    most: usize,
}

impl Buffer {
    /// A buffer for up to `capacity` bytes, aligned to a page, and `shift` bytes beyond, of such memory.
    pub(crate) fn new(capacity: usize, shift: usize, memory: Memory) -> Self {
        // The guard in front fills a page, so that the payload begins at one.
        const PAGE: usize = 4096;
        let layout = Layout::from_size_align(PAGE + shift + capacity + GUARD, PAGE)
            .expect("the size has been checked against the memory of the machine");
        let mut library = match memory {
            Memory::Allocator => None,
            Memory::Library => memory::SharedBuffer::new(layout.size()).ok(),
        };
        let base = match &mut library {
            Some(library) => library.as_mut_ptr(),
            // SAFETY: the layout is not empty.
            None => unsafe { alloc_zeroed(layout) },
        };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout, library, start: PAGE + shift, len: 0, most: 0 }
    }

    /// Takes the first `len` bytes into use, sets the guards around them and fills them with stale data.
    pub(crate) fn prepare(&mut self, len: usize) {
        self.len = len;
        self.most = self.most.max(len);
        let (start, all) = (self.start, self.all());
        all[start - GUARD..start].fill(GUARD_BYTE);
        all[start..start + len].fill(STALE_BYTE);
        all[start + len..start + len + GUARD].fill(GUARD_BYTE);
    }

    /// Writes `len` elements of size `element` beginning at element `at`: the period `source`, again and again.
    pub(crate) fn fill(&mut self, source: &[u8], at: usize, len: usize, element: usize) {
        let to = &mut self.payload()[at * element..][..len * element];
        if !to.is_empty() {
            to.chunks_mut(source.len())
                .for_each(|chunk| chunk.copy_from_slice(&source[..chunk.len()]));
        }
    }

    /// Writes the payload as it is: every cache line of it is this processor's then.
    pub(crate) fn rewrite(&mut self) {
        for line in self.payload().chunks_mut(64) {
            let first = &raw mut line[0];
            // SAFETY: it is a byte of the payload. Volatile, so that a write that changes nothing is made.
            unsafe { first.write_volatile(first.read_volatile()) };
        }
    }

    /// Bytes that were ever written: memory that it really takes.
    pub(crate) fn touched(&self) -> usize {
        self.most
    }

    /// The payload's address.
    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.payload().as_mut_ptr()
    }

    /// How many elements, of size `element`, from element `at` on differ from `expected`.
    pub(crate) fn wrong(&mut self, expected: &[Expected], at: usize, element: usize) -> u64 {
        let mut payload = &self.payload()[at * element..];
        let mut wrong = 0;
        for piece in expected.iter().flat_map(|e| e.pieces(element)) {
            let (mine, rest) = payload.split_at(piece.len());
            payload = rest;
            // The fast comparison first: almost always all is well.
            if mine != piece {
                let pairs = mine.chunks_exact(element).zip(piece.chunks_exact(element));
                wrong += pairs.filter(|(a, b)| a != b).count() as u64;
            }
        }
        wrong
    }

    /// How many bytes of the guards are damaged.
    pub(crate) fn damage(&mut self) -> u64 {
        let (start, end) = (self.start, self.start + self.len);
        let all = self.all();
        let guards = all[start - GUARD..start].iter().chain(&all[end..end + GUARD]);
        guards.filter(|&&byte| byte != GUARD_BYTE).count() as u64
    }

    /// Inverts the last of the first `len` bytes of the payload, if there are any: the self-test of the check.
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
        // SAFETY: the allocation is ours, zeroed at first, and of this size; nothing else refers to it while a call of
        // the library is not under way, and those end before they return.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.library.is_none() {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.base.as_ptr(), self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::data::{Data, PERIOD};

    const COUNT: usize = PERIOD + 100;

    fn filled() -> (Buffer, Vec<Expected>) {
        let data = Data { dtype: DType::Float32, op: Some(RedOp::Sum), nranks: 3, seed: 1 };
        let source = data.reduced(COUNT);
        let mut buffer = Buffer::new(4 * COUNT, 4, Memory::Library);
        buffer.prepare(4 * COUNT);
        buffer.fill(&source, 0, COUNT, 4);
        (buffer, vec![Expected { source, start: 0, len: COUNT }])
    }

    #[test]
    fn right_values_and_whole_guards_pass() {
        let (mut buffer, expected) = filled();
        assert_eq!((buffer.wrong(&expected, 0, 4), buffer.damage()), (0, 0));
    }

    #[test]
    fn each_flipped_bit_is_one_wrong_element() {
        for at in [0, 3, 4 * PERIOD - 1, 4 * PERIOD, 4 * COUNT - 1] {
            let (mut buffer, expected) = filled();
            buffer.payload()[at] ^= 1;
            assert_eq!(buffer.wrong(&expected, 0, 4), 1, "byte {at}");
        }
        let (mut buffer, expected) = filled();
        buffer.corrupt(4 * COUNT);
        assert_eq!(buffer.wrong(&expected, 0, 4), 1);
    }

    #[test]
    fn stale_and_misplaced_data_is_wrong() {
        let (mut buffer, expected) = filled();
        buffer.prepare(4 * COUNT);
        assert_eq!(buffer.wrong(&expected, 0, 4), COUNT as u64);
        let source = expected[0].source.clone();
        buffer.fill(&source, 1, COUNT - 1, 4);
        assert!(buffer.wrong(&expected, 0, 4) > COUNT as u64 / 2);
    }

    #[test]
    fn a_damaged_guard_is_seen_on_either_side() {
        for at in [-1, -(GUARD as isize), 4 * COUNT as isize, 4 * COUNT as isize + 255] {
            let (mut buffer, _) = filled();
            let index = buffer.start.checked_add_signed(at).unwrap();
            buffer.all()[index] = 0;
            assert_eq!(buffer.damage(), 1, "{at}");
        }
    }

    #[test]
    fn rewriting_changes_nothing() {
        let (mut buffer, expected) = filled();
        buffer.rewrite();
        assert_eq!((buffer.wrong(&expected, 0, 4), buffer.damage()), (0, 0));
    }

    #[test]
    fn nothing_is_a_valid_payload() {
        let mut buffer = Buffer::new(0, 0, Memory::Allocator);
        buffer.prepare(0);
        buffer.rewrite();
        buffer.fill(&[], 0, 0, 4);
        buffer.corrupt(0);
        assert_eq!((buffer.wrong(&[], 0, 4), buffer.damage()), (0, 0));
    }
}
