//! Copies of what fits a line, without a call: for a few bytes the call to `memcpy` is the greater part.

use core::ptr;

use crate::ll::LL_LINE_PAYLOAD;

/// Copies the part of a message that lies in one line; nearly always all of the line.
///
/// # Safety
/// As for `copy_nonoverlapping`; `len` is at most [`LL_LINE_PAYLOAD`].
#[inline(always)]
pub(crate) unsafe fn line(src: *const u8, dst: *mut u8, len: usize) {
    if len == LL_LINE_PAYLOAD {
        // SAFETY: the caller's promise. A constant length needs no call.
        unsafe { ptr::copy_nonoverlapping(src, dst, LL_LINE_PAYLOAD) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { short(src, dst, len) }
    }
}

/// Copies a few bytes without a call: two pieces of constant size that overlap as needed.
///
/// # Safety
/// As for `copy_nonoverlapping`; `len` is at most 64.
#[inline(always)]
pub(crate) unsafe fn short(src: *const u8, dst: *mut u8, len: usize) {
    /// # Safety
    /// As for `copy_nonoverlapping`; `len` is between `size_of::<T>()` and twice that.
    #[inline(always)]
    unsafe fn two<T>(src: *const u8, dst: *mut u8, len: usize) {
        let last = len - size_of::<T>();
        // SAFETY: both pieces lie within `len`; both are loaded before one is stored.
        unsafe {
            let head: T = ptr::read_unaligned(src.cast());
            let tail: T = ptr::read_unaligned(src.add(last).cast());
            ptr::write_unaligned(dst.cast(), head);
            ptr::write_unaligned(dst.add(last).cast(), tail);
        }
    }
    // SAFETY: each arm has the length that its size asks for; one byte is one byte.
    unsafe {
        match len {
            32.. => two::<[u64; 4]>(src, dst, len),
            16.. => two::<u128>(src, dst, len),
            8.. => two::<u64>(src, dst, len),
            4.. => two::<u32>(src, dst, len),
            2.. => two::<u16>(src, dst, len),
            1 => *dst = *src,
            0 => {}
        }
    }
}
