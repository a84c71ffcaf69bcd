//! `maypole.h`: host streams, on which calls on host memory run in order after the function has
//! returned.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;
use maypole::stream::Work;

use super::macros::extension;
use crate::boundary::{NcclResult, guarded, invalid_argument, log_error, refuse, write_result};
use crate::group;
use crate::stream::{
    StreamHandle, create_host_stream, created_stream, forget_host_stream, host_stream,
};

/// `maypoleCallback_t`
type Callback = Option<unsafe extern "C" fn(NcclResult, *mut c_void)>;

/// Refuses to destroy a stream in a group, whose calls are not queued on their streams yet.
fn check_outside_group() -> Result<(), ResultCode> {
    if group::is_open() {
        let text = "maypoleStreamDestroy in a group, whose calls are not on their streams yet";
        return Err(refuse(ResultCode::InvalidUsage, text));
    }
    Ok(())
}

/// A callback of the client, for the thread of the library that runs it.
struct ClientCallback {
    function: unsafe extern "C" fn(NcclResult, *mut c_void),
    data: *mut c_void,
}

// SAFETY: the client promised that the function may be called with this data on any thread.
unsafe impl Send for ClientCallback {}

impl ClientCallback {
    fn call(self, result: NcclResult) {
        // SAFETY: the client promised that the function may be called with this data.
        unsafe { (self.function)(result, self.data) }
    }
}

extension! {
    /// `maypoleStreamCreate`
    fn maypoleStreamCreate(out: *mut StreamHandle) -> NcclResult {
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("maypoleStreamCreate", out, || Ok(create_host_stream())) })
    }

    /// `maypoleStreamDestroy`: waits for all work on the stream.
    fn maypoleStreamDestroy(handle: StreamHandle) -> NcclResult {
        guarded(|| {
            if handle.is_null() {
                return Ok(());
            }
            check_outside_group()?;
            let ended = created_stream(handle)?.synchronize();
            if matches!(ended, Err(maypole::Error::InvalidUsage { .. })) {
                return ended.map_err(|error| log_error(&error));
            }
            forget_host_stream(handle);
            ended.map_err(|error| error.code())
        })
    }

    /// `maypoleStreamSynchronize`: returns when all work on the stream has ended. The calls of an
    /// open group are not on their streams yet, so it does not wait for them, as with a CUDA
    /// stream.
    fn maypoleStreamSynchronize(stream: StreamHandle) -> NcclResult {
        guarded(|| {
            match host_stream(stream)? {
                Some(stream) => stream.synchronize().map_err(|error| error.code()),
                // Calls on a default stream have returned, so they are done.
                None => Ok(()),
            }
        })
    }

    /// `maypoleStreamQuery`: whether all work on the stream has ended.
    fn maypoleStreamQuery(stream: StreamHandle) -> NcclResult {
        guarded(|| match host_stream(stream)? {
            Some(stream) => match stream.is_idle() {
                Ok(true) => Ok(()),
                Ok(false) => Err(ResultCode::InProgress),
                Err(error) => Err(error.code()),
            },
            None => Ok(()),
        })
    }

    /// `maypoleStreamWaitStream`: later work on `stream` waits for the present work on `other`, to
    /// which the calls of an open group do not belong.
    fn maypoleStreamWaitStream(stream: StreamHandle, other: StreamHandle) -> NcclResult {
        guarded(|| {
            match (host_stream(stream)?, host_stream(other)?) {
                (Some(stream), Some(other)) => {
                    stream.wait_for(&other).map_err(|error| log_error(&error))
                }
                (_, None) => Ok(()),
                (None, Some(_)) => Err(invalid_argument(
                    "maypoleStreamWaitStream: a default stream cannot wait; synchronise with the \
                     other stream",
                )),
            }
        })
    }

    /// `maypoleStreamAddCallback`: calls the function after the present work on the stream, which
    /// does not include the calls of an open group.
    fn maypoleStreamAddCallback(
        stream: StreamHandle,
        callback: Callback,
        data: *mut c_void,
    ) -> NcclResult {
        guarded(|| {
            let Some(function) = callback else {
                return Err(invalid_argument("maypoleStreamAddCallback: the callback is NULL"));
            };
            let stream = host_stream(stream)?.ok_or_else(|| {
                invalid_argument(
                    "maypoleStreamAddCallback: a default stream takes no callbacks; its calls are \
                     done when they return",
                )
            })?;
            let callback = ClientCallback { function, data };
            let of_callback = stream.clone();
            let work: Work = Box::new(move || {
                callback.call(of_callback.failure().map_or(0, |code| code as c_int));
                Ok(())
            });
            stream.run(work).map(drop).map_err(|error| log_error(&error))
        })
    }

    /// `maypoleStreamGetEventFd`: a file descriptor that becomes readable as work ends.
    fn maypoleStreamGetEventFd(stream: StreamHandle, out: *mut c_int) -> NcclResult {
        let event_fd = || {
            let stream = host_stream(stream)?.ok_or_else(|| {
                invalid_argument(
                    "maypoleStreamGetEventFd: a default stream has no file descriptor; its calls \
                     are done when they return",
                )
            })?;
            stream.event_fd().map_err(|error| log_error(&error))
        };
        // SAFETY: the client promised that `out` is NULL or writable.
        guarded(|| unsafe { write_result("maypoleStreamGetEventFd", out, event_fd) })
    }
}
