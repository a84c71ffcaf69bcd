//! `ncclComm_t`: the handle of a communicator, a number that names an entry and a generation.

use std::ffi::c_void;
use std::ptr::null_mut;

/// How many entries handles can name, and so how many communicators may be live at a time.
pub(super) const MAX_ENTRIES: usize = 1 << 15;
const INDEX_BITS: u32 = MAX_ENTRIES.trailing_zeros();
/// The low bits of a handle: one is set, so that handles are aligned like pointers and never NULL.
pub(super) const LOW_BITS: usize = 0b1000;
/// How many bits of a handle are below the index.
const LOW_BIT_COUNT: u32 = 4;

/// `ncclComm_t` as the client holds it: a number in the shape of a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct CommHandle(*mut c_void);

// SAFETY: a handle is a number; no memory is reached through it.
unsafe impl Send for CommHandle {}

impl CommHandle {
    /// `NCCL_COMM_NULL`
    pub(crate) const NULL: Self = Self(null_mut());

    /// The handle of that generation of that entry.
    pub(super) fn new(index: usize, generation: u64) -> Self {
        let value = (generation as usize) << (LOW_BIT_COUNT + INDEX_BITS)
            | index << LOW_BIT_COUNT
            | LOW_BITS;
        Self(std::ptr::without_provenance_mut(value))
    }

    /// Any value that a client may pass.
    #[cfg(test)]
    pub(super) fn from_value(value: usize) -> Self {
        Self(std::ptr::without_provenance_mut(value))
    }

    /// Index and generation; None if the value has not the form of a handle.
    #[inline]
    pub(super) fn parts(self) -> Option<(usize, u64)> {
        let value = self.addr();
        let index = value >> LOW_BIT_COUNT & (MAX_ENTRIES - 1);
        let generation = (value >> (LOW_BIT_COUNT + INDEX_BITS)) as u64;
        (value & ((1 << LOW_BIT_COUNT) - 1) == LOW_BITS).then_some((index, generation))
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The number that the handle is.
    #[inline]
    pub(crate) fn addr(self) -> usize {
        self.0.addr()
    }

    /// The handle in the shape of a pointer, for logs.
    pub(crate) fn as_ptr(self) -> *const c_void {
        self.0
    }
}
