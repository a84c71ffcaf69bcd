//! The buffers that are registered with a communicator (`ncclCommRegister`).

use std::collections::HashMap;
use std::ffi::c_void;

use maypole::ResultCode;

use crate::boundary::invalid_argument;

/// The registered buffers, by the number in their handle.
#[derive(Default)]
pub(crate) struct BufferTable {
    /// Address and bytes.
    registered: HashMap<usize, (usize, usize)>,
    /// How many were ever registered.
    count: usize,
}

impl BufferTable {
    /// Registers `size` bytes at `address`. The handle is never NULL and none is given twice.
    pub(crate) fn add(&mut self, address: usize, size: usize) -> *mut c_void {
        self.count += 1;
        self.registered.insert(self.count, (address, size));
        std::ptr::without_provenance_mut(self.count << 4)
    }

    /// Deregisters the buffer of that handle.
    pub(crate) fn remove(&mut self, handle: *mut c_void) -> Result<(), ResultCode> {
        let number = handle.addr() >> 4;
        if handle.addr() & 0xf == 0 && self.registered.remove(&number).is_some() {
            return Ok(());
        }
        Err(invalid_argument(
            "the handle is none of a buffer that is registered with this communicator",
        ))
    }
}
