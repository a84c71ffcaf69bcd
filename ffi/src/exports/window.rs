//! Windows and the one-sided calls over them. `docs/abi.md` states what they guarantee.

use std::ffi::{c_int, c_uint, c_void};

use maypole::ResultCode;
use maypole::config::Config;

use super::macros::abi;
use crate::boundary::{NcclResult, guarded, invalid_argument, log_error, write_result};
use crate::group;
use crate::layout::NcclWaitSignalDesc;
use crate::registry::{self, CommHandle, WindowHandle};
use crate::request::{
    OneSidedRequest, OrderedRequest, QueuedRequest, SignalArguments, WindowRequest,
};
use crate::stream::{CallStream, StreamHandle};

/// All flags `NCCL_WIN_*`.
const ALL_FLAGS: c_int = 0b1111;

/// Registers a window, or queues its registration in the open group.
///
/// # Safety
/// The buffer is memory that belongs to the window until its deregistration. `out` is NULL or
/// writable until the call, or its group, has ended.
unsafe fn register_window(
    comm: CommHandle,
    buffer: *mut c_void,
    size: usize,
    out: *mut WindowHandle,
    flags: c_int,
) -> Result<(), ResultCode> {
    let guard = registry::acquire(comm)?;
    guard.check_open()?;
    if out.is_null() {
        return Err(invalid_argument("ncclCommWindowRegister: the pointer for the result is NULL"));
    }
    if buffer.is_null() || size == 0 {
        return Err(invalid_argument("ncclCommWindowRegister: the buffer is NULL or of no bytes"));
    }
    if flags & !ALL_FLAGS != 0 {
        return Err(invalid_argument(&format!("ncclCommWindowRegister: unknown flags {flags:#x}")));
    }
    // As NCCL does where the hardware has no symmetric memory.
    if !Config::get().windows || guard.device().is_some() {
        // SAFETY: the caller promises that `out` is writable, and it is not NULL.
        unsafe { out.write(std::ptr::null_mut()) };
        return Ok(());
    }
    // SAFETY: the caller promises that `out` is writable until the call, or its group, has ended.
    let request = unsafe { WindowRequest::new(comm, buffer, size, out) };
    if group::is_open() {
        group::check_blocking(guard.is_blocking())?;
        let request = || QueuedRequest::Ordered(OrderedRequest::Window(request));
        group::queue(comm, CallStream::Default, request);
        return Ok(());
    }
    request.run(&mut guard.into_exclusive()?.call_context())
}

abi! {
    /// `ncclCommWindowRegister`: all ranks register together.
    fn ncclCommWindowRegister(
        comm: CommHandle,
        buffer: *mut c_void,
        size: usize,
        window: *mut WindowHandle,
        flags: c_int,
    ) -> NcclResult {
        guarded(|| {
            // SAFETY: the client promised such memory and such a pointer.
            let registered = unsafe { register_window(comm, buffer, size, window, flags) };
            group::keep_first_error(registered)
        })
    }

    /// `ncclCommWindowDeregister`: each rank deregisters its own memory.
    fn ncclCommWindowDeregister(comm: CommHandle, window: WindowHandle) -> NcclResult {
        guarded(|| {
            let mut comm = registry::acquire_exclusive(comm)?;
            if window.is_null() {
                return Ok(());
            }
            let id = comm.windows.remove(window)?.id;
            comm.comm.deregister_window(id).map_err(|error| log_error(&error))
        })
    }

    /// `ncclWinGetUserPtr`: this rank's memory of a window.
    fn ncclWinGetUserPtr(
        comm: CommHandle,
        window: WindowHandle,
        out: *mut *mut c_void,
    ) -> NcclResult {
        let memory = || {
            let comm = registry::acquire(comm)?;
            if window.is_null() {
                return Ok(std::ptr::null_mut());
            }
            let address = comm.windows().find(window)?.address;
            Ok(std::ptr::with_exposed_provenance_mut(address))
        };
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("ncclWinGetUserPtr", out, memory) })
    }

    /// `ncclPutSignal`: writes to a window of the peer, and signals the peer.
    fn ncclPutSignal(
        local: *const c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        window: WindowHandle,
        offset: usize,
        signal: c_int,
        context: c_int,
        flags: c_uint,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let signal = SignalArguments { signal, context, flags };
        group::submit(comm, stream, |comm| {
            OneSidedRequest::put(comm, (local, count, dtype), peer, (window, offset), signal)
        })
    }

    /// `ncclSignal`: signals the peer.
    fn ncclSignal(
        peer: c_int,
        signal: c_int,
        context: c_int,
        flags: c_uint,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        let signal = SignalArguments { signal, context, flags };
        group::submit(comm, stream, |comm| OneSidedRequest::signal(comm, peer, signal))
    }

    /// `ncclWaitSignal`: waits for signals of peers.
    fn ncclWaitSignal(
        count: c_int,
        waits: *mut NcclWaitSignalDesc,
        comm: CommHandle,
        stream: StreamHandle,
    ) -> NcclResult {
        group::submit(comm, stream, |comm| {
            if count < 1 || waits.is_null() {
                return Err(invalid_argument("ncclWaitSignal: there is nothing to wait for"));
            }
            // SAFETY: the client promised `count` readable waits, and the pointer is not NULL.
            let waits = unsafe { std::slice::from_raw_parts(waits, count as usize) };
            OneSidedRequest::wait(comm, waits)
        })
    }
}
