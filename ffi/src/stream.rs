//! Streams that clients pass to calls: default streams, host streams of `maypole.h`, and CUDA's.
//!
//! On a default stream a call on host memory returns when it is done. On a host stream it is queued
//! and runs later, in order. Handles of host streams are numbers in the shape of pointers, none of
//! which is given twice, so that every other value is refused and nothing is read through it.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::device::CudaStreamHandle;
use maypole::internal::sync::{AtomicUsize, Ordering};
use maypole::stream::{PerProcess, Stream};

use crate::boundary::invalid_argument;

/// `cudaStream_t` as the client holds it.
pub(crate) type StreamHandle = *mut c_void;

/// `cudaStreamPerThread`, the largest handle that is no address. NULL and `cudaStreamLegacy` are
/// below it.
const PER_THREAD: usize = 2;
/// The low bits of the handle of a host stream. CUDA aligns its streams otherwise.
const LOW_BITS: usize = 0b100;
/// How many bits of the handle of a host stream are below its number.
const LOW_BIT_COUNT: u32 = 4;
/// The lowest handle that a driver could give, as it makes handles of addresses.
const LOWEST_ADDRESS: usize = 4096;

/// The stream on which a call runs.
pub(crate) enum CallStream {
    /// A default stream on host memory: the call returns when it is done.
    Default,
    /// A host stream.
    Host(Stream),
    /// A stream of a CUDA device.
    Cuda(CudaStreamHandle),
}

/// The host streams of this process by number. A child made by fork begins with none.
static HOST_STREAMS: PerProcess<Mutex<HashMap<usize, Stream>>> = PerProcess::new();

/// How many host streams were created. A child made by fork counts on, so that it gives no handle
/// of its parent again.
static CREATED: AtomicUsize = AtomicUsize::new(0);

/// The stream of a call on a communicator of that CUDA device, or of host memory.
#[inline]
pub(crate) fn resolve(
    handle: StreamHandle,
    device: Option<c_int>,
) -> Result<CallStream, ResultCode> {
    match device {
        None => Ok(host_stream(handle)?.map_or(CallStream::Default, CallStream::Host)),
        Some(device) => cuda_stream(handle, device).map(CallStream::Cuda),
    }
}

/// The host stream of a handle; None for a default stream.
#[inline]
pub(crate) fn host_stream(handle: StreamHandle) -> Result<Option<Stream>, ResultCode> {
    if handle.addr() <= PER_THREAD {
        return Ok(None);
    }
    created_stream(handle).map(Some)
}

/// The host stream of a handle that `maypoleStreamCreate` gave.
#[cold]
pub(crate) fn created_stream(handle: StreamHandle) -> Result<Stream, ResultCode> {
    let found = host_streams().get(&(handle.addr() >> LOW_BIT_COUNT)).cloned();
    found.filter(|_| has_low_bits(handle)).ok_or_else(|| {
        invalid_argument(
            "the stream is none that a communicator of host memory takes: it takes the default \
             streams (NULL, cudaStreamLegacy, cudaStreamPerThread) and those of \
             maypoleStreamCreate that were not destroyed. Streams of CUDA are for communicators \
             of a device; see MAYPOLE_DEVICE",
        )
    })
}

/// Creates a host stream.
pub(crate) fn create_host_stream() -> StreamHandle {
    // Relaxed: the numbers only have to differ.
    let number = CREATED.fetch_add(1, Ordering::Relaxed) + 1;
    host_streams().insert(number, Stream::new());
    std::ptr::without_provenance_mut(number << LOW_BIT_COUNT | LOW_BITS)
}

/// Forgets a host stream. Its handle is refused from now on.
pub(crate) fn forget_host_stream(handle: StreamHandle) {
    host_streams().remove(&(handle.addr() >> LOW_BIT_COUNT));
}

/// A stream of CUDA. Only values that cannot be one are refused: nothing is read through a pointer
/// that may not be an address.
fn cuda_stream(handle: StreamHandle, device: c_int) -> Result<CudaStreamHandle, ResultCode> {
    let value = handle.addr();
    if value > PER_THREAD {
        if has_low_bits(handle) {
            return Err(invalid_argument(&format!(
                "the stream is one of maypoleStreamCreate, or was; a communicator of CUDA device \
                 {device} takes streams of CUDA"
            )));
        }
        if value < LOWEST_ADDRESS {
            return Err(invalid_argument(&format!("{value:#x} is not a stream")));
        }
    }
    Ok(CudaStreamHandle(handle))
}

fn has_low_bits(handle: StreamHandle) -> bool {
    handle.addr() & ((1 << LOW_BIT_COUNT) - 1) == LOW_BITS
}

fn host_streams() -> MutexGuard<'static, HashMap<usize, Stream>> {
    HOST_STREAMS.get().lock().unwrap_or_else(PoisonError::into_inner)
}
