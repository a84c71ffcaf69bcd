//! On what stream a call runs: on a default one it returns when it is done; on a host stream, an extension of `maypole.h`, it is issued and
//! runs in order. Handles of streams are numbers in the shape of pointers, never given twice, so that everything else is refused
//! and nothing is read through it.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole::ResultCode;
use maypole::device::CudaStream;
use maypole::stream::{self, PerProcess, Ticket, Work};

use crate::boundary::{NcclResult, answer, decided, invalid, refuse};
use crate::export::extension;
use crate::group;
use crate::identity::put;
use crate::registry::Visitor;

/// `cudaStream_t` as the client holds it.
pub(crate) type Stream = *mut c_void;

/// `void (*)(ncclResult_t, void*)`
type Callback = Option<unsafe extern "C" fn(NcclResult, *mut c_void)>;

/// `cudaStreamPerThread`, the largest of the handles that are no address; NULL and `cudaStreamLegacy` are below.
const PER_THREAD: usize = 2;
/// Low bits of a handle: no device's runtime aligns its streams like this.
const LOW_BITS: usize = 0b100;
/// Bits of a handle below its number.
const LOW: u32 = 4;

/// The lowest handle that a driver might give: it makes them of addresses.
const LEAST_ADDRESS: usize = 4096;

/// Where a call runs.
pub(crate) enum On {
    /// On the calling thread: it returns when it is over.
    Caller,
    /// On a host stream.
    Host(stream::Stream),
    /// On a stream of a CUDA device.
    Cuda(CudaStream),
}

/// Streams of this process by number. A child made by fork begins with none.
static LIVE: PerProcess<Mutex<HashMap<usize, stream::Stream>>> = PerProcess::new();

/// How many were made. A child goes on from there: what it makes is no stream of its parent's.
static MADE: AtomicUsize = AtomicUsize::new(0);

fn live() -> MutexGuard<'static, HashMap<usize, stream::Stream>> {
    LIVE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a call on the communicator runs that the client puts on `stream`.
#[inline]
pub(crate) fn on(visitor: &Visitor, stream: Stream) -> Result<On, ResultCode> {
    match visitor.device() {
        None => Ok(find(stream)?.map_or(On::Caller, On::Host)),
        Some(device) => cuda(device, stream).map(On::Cuda),
    }
}

/// A stream of CUDA's, as far as that can be told: nothing is read through what may be no address.
fn cuda(device: c_int, stream: Stream) -> Result<CudaStream, ResultCode> {
    let handle = stream.addr();
    if handle > PER_THREAD {
        if handle & ((1 << LOW) - 1) == LOW_BITS {
            return Err(invalid(&format!(
                "a stream of maypoleStreamCreate, live or not, on a communicator of CUDA device {device}; it takes CUDA's streams"
            )));
        }
        if handle < LEAST_ADDRESS {
            return Err(invalid(&format!("{handle:#x} is not a stream")));
        }
    }
    Ok(CudaStream(stream))
}

/// The host stream of a handle, none for a default stream.
#[inline]
pub(crate) fn find(stream: Stream) -> Result<Option<stream::Stream>, ResultCode> {
    if stream.addr() <= PER_THREAD {
        return Ok(None);
    }
    known(stream).map(Some)
}

#[cold]
fn known(stream: Stream) -> Result<stream::Stream, ResultCode> {
    let number = stream.addr() >> LOW;
    let found = live().get(&number).cloned();
    found.filter(|_| stream.addr() & ((1 << LOW) - 1) == LOW_BITS).ok_or_else(|| {
        invalid(
            "a communicator of host memory takes the default streams (NULL, cudaStreamLegacy, cudaStreamPerThread) and those of maypoleStreamCreate that were not destroyed; other streams of CUDA are for communicators of a device, see MAYPOLE_DEVICE",
        )
    })
}

/// What calls of a group that were issued ended with, for those that are to be waited for.
pub(crate) fn wait_for(tickets: &[Ticket]) -> Result<(), ResultCode> {
    tickets.iter().map(Ticket::wait).fold(Ok(()), Result::and)
}

/// What the functions of streams are not called in.
fn outside(function: &str) -> Result<(), ResultCode> {
    if group::is_open() {
        let text = format!("{function} in a group, whose calls are not issued yet");
        return Err(refuse(ResultCode::InvalidUsage, &text));
    }
    Ok(())
}

/// A callback on its way to the thread that runs it.
struct Called {
    callback: unsafe extern "C" fn(NcclResult, *mut c_void),
    data: *mut c_void,
}

// SAFETY: the client promised that the function may be called with this data on any thread.
unsafe impl Send for Called {}

impl Called {
    fn call(self, result: NcclResult) {
        // SAFETY: the client's promise.
        unsafe { (self.callback)(result, self.data) }
    }
}

extension! {
    /// `maypoleStreamCreate`
    fn maypoleStreamCreate(out: *mut Stream) -> NcclResult {
        answer(|| {
            put("maypoleStreamCreate", out, || {
                // Relaxed: only that no two are the same.
                let number = MADE.fetch_add(1, Ordering::Relaxed) + 1;
                live().insert(number, stream::Stream::new());
                Ok(std::ptr::without_provenance_mut(number << LOW | LOW_BITS))
            })
        })
    }

    /// `maypoleStreamDestroy`: waits for what was issued on it.
    fn maypoleStreamDestroy(stream: Stream) -> NcclResult {
        answer(|| {
            if stream.is_null() {
                return Ok(());
            }
            outside("maypoleStreamDestroy")?;
            let known = known(stream)?;
            let ended = known.synchronize();
            if matches!(ended, Err(maypole::Error::InvalidUsage { .. })) {
                return ended.map_err(|error| decided(&error));
            }
            live().remove(&(stream.addr() >> LOW));
            ended.map_err(|error| error.code())
        })
    }

    /// `maypoleStreamSynchronize`
    fn maypoleStreamSynchronize(stream: Stream) -> NcclResult {
        answer(|| {
            outside("maypoleStreamSynchronize")?;
            match find(stream)? {
                Some(stream) => stream.synchronize().map_err(|error| error.code()),
                // What is on a default stream is done.
                None => Ok(()),
            }
        })
    }

    /// `maypoleStreamQuery`
    fn maypoleStreamQuery(stream: Stream) -> NcclResult {
        answer(|| match find(stream)? {
            Some(stream) => match stream.is_idle() {
                Ok(true) => Ok(()),
                Ok(false) => Err(ResultCode::InProgress),
                Err(error) => Err(error.code()),
            },
            None => Ok(()),
        })
    }

    /// `maypoleStreamWaitStream`
    fn maypoleStreamWaitStream(stream: Stream, other: Stream) -> NcclResult {
        answer(|| {
            outside("maypoleStreamWaitStream")?;
            match (find(stream)?, find(other)?) {
                (Some(stream), Some(other)) => stream.wait_for(&other).map_err(|error| decided(&error)),
                (_, None) => Ok(()),
                (None, Some(_)) => Err(invalid(
                    "maypoleStreamWaitStream: a default stream cannot wait; synchronise with the other one",
                )),
            }
        })
    }

    /// `maypoleStreamAddCallback`
    fn maypoleStreamAddCallback(stream: Stream, callback: Callback, data: *mut c_void) -> NcclResult {
        answer(|| {
            outside("maypoleStreamAddCallback")?;
            let Some(callback) = callback else {
                return Err(invalid("maypoleStreamAddCallback: the callback is NULL"));
            };
            let stream = find(stream)?.ok_or_else(|| {
                invalid("maypoleStreamAddCallback: a default stream has no callbacks; what is on it is done")
            })?;
            let (called, of) = (Called { callback, data }, stream.clone());
            let work: Work = Box::new(move || {
                called.call(of.failure().map_or(0, |code| code as c_int));
                Ok(())
            });
            stream.run(work).map(drop).map_err(|error| decided(&error))
        })
    }

    /// `maypoleStreamGetEventFd`
    fn maypoleStreamGetEventFd(stream: Stream, out: *mut c_int) -> NcclResult {
        answer(|| {
            put("maypoleStreamGetEventFd", out, || {
                let stream = find(stream)?.ok_or_else(|| {
                    invalid("maypoleStreamGetEventFd: a default stream has none; what is on it is done")
                })?;
                stream.event_fd().map_err(|error| decided(&error))
            })
        })
    }
}
