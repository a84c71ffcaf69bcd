//! Checks of arguments that several functions of the ABI take.

use std::ffi::{c_int, c_void};

use maypole::DType;
use maypole::ResultCode;

use crate::boundary::invalid_argument;

/// The element type of an `ncclDataType_t`.
#[inline]
pub(crate) fn data_type(code: c_int) -> Result<DType, ResultCode> {
    DType::from_code(code)
        .ok_or_else(|| invalid_argument(&format!("{code} is not a data type (ncclDataType_t)")))
}

/// The client's root as a rank. A negative one becomes a rank that no communicator has.
pub(crate) fn root(root: c_int) -> u32 {
    root as u32
}

/// Refuses a root that the communicator does not have.
pub(crate) fn check_root(root: u32, nranks: u32) -> Result<(), ResultCode> {
    if root < nranks {
        return Ok(());
    }
    let root = root as c_int;
    Err(invalid_argument(&format!("root {root} in a communicator of {nranks} ranks")))
}

/// The client's peer as a rank of the communicator.
pub(crate) fn peer(peer: c_int, nranks: u32) -> Result<u32, ResultCode> {
    let rank = u32::try_from(peer).ok().filter(|rank| *rank < nranks);
    rank.ok_or_else(|| {
        invalid_argument(&format!("peer {peer} in a communicator of {nranks} ranks"))
    })
}

/// The bytes of `count` elements of `size` bytes each.
#[inline]
pub(crate) fn buffer_bytes(count: usize, size: usize) -> Result<usize, ResultCode> {
    let bytes = count.checked_mul(size).filter(|bytes| *bytes <= isize::MAX as usize);
    bytes.ok_or_else(|| invalid_argument("the count is larger than any memory"))
}

/// Refuses a pointer that is NULL.
pub(crate) fn check_not_null<T>(function: &str, pointer: *const T) -> Result<(), ResultCode> {
    if pointer.is_null() {
        return Err(invalid_argument(&format!("{function}: a pointer is NULL")));
    }
    Ok(())
}

/// Refuses a buffer that is NULL unless it has no elements.
#[inline]
pub(crate) fn check_buffer(buffer: *const c_void, elements: usize) -> Result<(), ResultCode> {
    if buffer.is_null() && elements != 0 {
        return Err(invalid_argument("a buffer is NULL"));
    }
    Ok(())
}
