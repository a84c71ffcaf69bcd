//! On what stream a call runs. A communicator of host memory has none: a call on one of the default streams returns when it is done.
//! Host streams, an extension to come, are told apart here.

use std::ffi::c_void;

use maypole::error::ResultCode;

use crate::answer::invalid;

/// `cudaStream_t` as the client holds it.
pub(crate) type Stream = *mut c_void;

/// `cudaStreamPerThread`, the largest of the handles that are no address; NULL and `cudaStreamLegacy` are below.
const PER_THREAD: usize = 2;

/// Whether a call may run on this stream.
#[inline]
pub(crate) fn check(stream: Stream) -> Result<(), ResultCode> {
    if stream.addr() > PER_THREAD {
        return Err(invalid(
            "a communicator of host memory takes no stream but the default ones (NULL, cudaStreamLegacy, cudaStreamPerThread)",
        ));
    }
    Ok(())
}
