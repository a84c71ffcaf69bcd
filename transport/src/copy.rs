//! Copies of a few bytes without a call to `memcpy`, which would cost more than the copy itself.

use core::ptr;

/// Copies up to 64 bytes as two pieces of constant size that overlap where needed.
///
/// # Safety
/// As for `copy_nonoverlapping`; `len` is at most 64.
#[inline(always)]
pub(crate) unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    /// # Safety
    /// As for `copy_nonoverlapping`; `len` is between `size_of::<T>()` and twice that.
    #[inline(always)]
    unsafe fn two_pieces<T>(src: *const u8, dst: *mut u8, len: usize) {
        let last = len - size_of::<T>();
        // SAFETY: both pieces lie within `len`, and both are loaded before either is stored.
        unsafe {
            let head: T = ptr::read_unaligned(src.cast());
            let tail: T = ptr::read_unaligned(src.add(last).cast());
            ptr::write_unaligned(dst.cast(), head);
            ptr::write_unaligned(dst.add(last).cast(), tail);
        }
    }
    // SAFETY: each arm has the length that its type requires; the arm of 1 copies that byte.
    unsafe {
        match len {
            32.. => two_pieces::<[u64; 4]>(src, dst, len),
            16.. => two_pieces::<u128>(src, dst, len),
            8.. => two_pieces::<u64>(src, dst, len),
            4.. => two_pieces::<u32>(src, dst, len),
            2.. => two_pieces::<u16>(src, dst, len),
            1 => *dst = *src,
            0 => {}
        }
    }
}

/// Copies up to `USUAL` bytes, nearly always exactly `USUAL`.
///
/// # Safety
/// As for `copy_nonoverlapping`; `len` is at most `USUAL`, which is at most 64.
#[inline(always)]
pub(crate) unsafe fn copy_mostly<const USUAL: usize>(src: *const u8, dst: *mut u8, len: usize) {
    if len == USUAL {
        // SAFETY: the caller's promise. A constant length needs no call to `memcpy`.
        unsafe { ptr::copy_nonoverlapping(src, dst, USUAL) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { copy_short(src, dst, len) }
    }
}
