//! The registration of a window by all ranks (`ncclCommWindowRegister`).

use std::ffi::c_void;

use maypole::ResultCode;

use super::failure::failed_call;
use crate::registry::{CallContext, CommHandle, WindowHandle, add_window};

/// A window to be registered.
pub(crate) struct WindowRequest {
    comm: CommHandle,
    buffer: *mut c_void,
    size: usize,
    /// Where the client wants the handle.
    out: *mut WindowHandle,
}

// SAFETY: the client lends the buffer to the window, and `out` to the call or its group, on any
// thread.
unsafe impl Send for WindowRequest {}

impl WindowRequest {
    /// A registration of `size` bytes at `buffer`, neither of them NULL or 0.
    ///
    /// # Safety
    /// `out` is writable until the call, or its group, has ended.
    pub(crate) unsafe fn new(
        comm: CommHandle,
        buffer: *mut c_void,
        size: usize,
        out: *mut WindowHandle,
    ) -> Self {
        Self { comm, buffer, size, out }
    }

    /// Registers the window; returns when all ranks have.
    pub(crate) fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        let Self { comm, buffer, size, out } = self;
        // SAFETY: by the terms of nccl.h the client promised memory that belongs to the window
        // until its deregistration.
        let registered = unsafe { context.comm.register_window(buffer.cast(), size) };
        let id = registered.map_err(|error| failed_call(&error, context))?;
        // SAFETY: the caller of `new` promised that `out` is writable.
        unsafe { out.write(add_window(comm, buffer, size, id)) };
        Ok(())
    }
}
