//! Lists and bytes that a caller gives.

use std::ffi::c_int;

use crate::abi;

/// The scatter or gather entries of a work request.
pub(super) fn entries<'a>(list: *const abi::ibv_sge, count: c_int) -> &'a [abi::ibv_sge] {
    if count <= 0 {
        return &[];
    }
    // SAFETY: the caller's list has so many entries.
    unsafe { std::slice::from_raw_parts(list, count as usize) }
}

/// The bytes of an entry that travel with the work request.
pub(super) fn append(inline: &mut Vec<u8>, address: u64, length: usize) {
    if length != 0 {
        let from = std::ptr::with_exposed_provenance::<u8>(address as usize);
        // SAFETY: the caller promises that the bytes can be read during the call.
        inline.extend_from_slice(unsafe { std::slice::from_raw_parts(from, length) });
    }
}
