//! Calls on CUDA streams: the calls that can be queued, and the function that queues them.

pub(crate) mod batch;

use std::sync::Arc;

use maypole_cuda::driver::CurrentContext;
use maypole_cuda::stream::CaptureStatus;

use self::batch::{BatchMember, LaunchBatch, launch_batches};
use super::Communicator;
use crate::call::{Call, VectorCall};
use crate::device::CudaStreamHandle;
use crate::device::queue::work_order::StreamPosition;
use crate::device::setup::gpu::Gpu;
use crate::error::Error;
use crate::transfer::Transfer;
use crate::tune::AlgorithmFilter;

/// One call of a rank, to be queued on a stream. Pointers are to memory that the communicator's
/// device reaches: its own memory, or host memory that is pinned, registered or managed.
#[derive(Clone, Debug)]
pub enum DeviceCall<'a> {
    /// A collective call.
    Collective(Call),
    /// A collective call that may use these algorithms only.
    Among(Call, AlgorithmFilter),
    /// A vector collective: its blocks differ in length between ranks.
    Vector(VectorCall<'a>),
    /// A group of sends and receives.
    Transfers(&'a [Transfer]),
    /// A barrier: what is queued behind it runs after all ranks have reached it.
    Barrier,
}

/// Calls of one communicator on one stream.
pub struct StreamCalls<'a> {
    /// A communicator of a device.
    pub comm: &'a mut Communicator,
    /// The calls, in the order in which all ranks make them.
    pub calls: Vec<DeviceCall<'a>>,
    /// A stream of that device.
    pub stream: CudaStreamHandle,
}

/// Queues calls of one or more communicators and returns without waiting for them. Calls of
/// communicators of one device are queued together, so that one thread can make the calls of
/// several ranks that wait for each other.
///
/// # Errors
/// What is found before a call is queued. The communicator remains usable if that is harmless, and
/// is broken otherwise. What goes wrong later is reported by [`Communicator::async_error`].
///
/// # Safety
/// As for the calls on host memory ([`Communicator::run`]), from now until the stream has run them;
/// if the stream is captured, at every replay of the graph. The streams exist, and belong to the
/// device of their communicator.
pub unsafe fn launch_calls(calls: Vec<StreamCalls<'_>>) -> Result<(), Error> {
    let mut calls: Vec<Option<StreamCalls<'_>>> = calls.into_iter().map(Some).collect();
    let mut by_gpu = Vec::new();
    while let Some(gpu) = calls.iter().flatten().find_map(|part| part.comm.gpu()) {
        let on_gpu = calls.iter_mut().filter_map(|part| {
            part.take_if(|part| part.comm.gpu().is_some_and(|other| Arc::ptr_eq(&gpu, &other)))
        });
        let on_gpu: Vec<_> = on_gpu.collect();
        by_gpu.push((gpu, on_gpu));
    }
    let mut result = Ok(());
    // All calls are planned before any is launched: planning may allocate, which may wait for the
    // kernels of all devices, and a kernel that is launched here may wait for the others.
    let only_one = by_gpu.len() == 1;
    let mut planned = Vec::new();
    for (gpu, on_gpu) in by_gpu {
        let current = match gpu.device.current() {
            Ok(current) => current,
            Err(error) => {
                result = result.and(Err(error.into()));
                continue;
            }
        };
        // SAFETY: the caller guarantees what `launch_calls` requires.
        let members = match unsafe { plan_on(&current, on_gpu) } {
            Ok((members, outcome)) => {
                result = result.and(outcome);
                members
            }
            Err(error) => {
                result = result.and(Err(error));
                continue;
            }
        };
        if only_one {
            // SAFETY: as above.
            let launched = unsafe { launch_batches(&current, &gpu, members) };
            result = result.and(launched);
        } else {
            drop(current);
            planned.push((gpu, members));
        }
    }
    for (gpu, members) in planned {
        let current = match gpu.device.current() {
            Ok(current) => current,
            Err(error) => {
                for member in members {
                    result = result.and(Err(member.fail(error.clone())));
                }
                continue;
            }
        };
        // SAFETY: the caller guarantees what `launch_calls` requires.
        let launched = unsafe { launch_batches(&current, &gpu, members) };
        result = result.and(launched);
    }
    match calls.into_iter().flatten().next() {
        None => result,
        Some(part) => Err(Error::InvalidUsage {
            what: format!(
                "a call on a CUDA stream by rank {} of a communicator of host memory; make the \
                 communicator with Options::device",
                part.comm.rank()
            ),
        }),
    }
}

/// Refuses a stream of another context than the primary one of the device, where the kernels are. A
/// stream that was used before is not asked again.
///
/// # Errors
/// The stream is of another context.
///
/// # Safety
/// The stream exists. `current` is the context of the communicator's device.
unsafe fn check_context(
    current: &CurrentContext<'_>,
    comm: &Communicator,
    stream: CudaStreamHandle,
) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let is_primary = |gpu: Arc<Gpu>| unsafe {
        // Some streams of green contexts have no context to tell, and can be used.
        gpu.device.owns_stream(current, stream.0).unwrap_or(true)
    };
    // The default streams are those of the current context.
    let is_default = (stream.0 as usize) < 3;
    if is_default || !comm.is_new_stream(stream.0 as usize) || comm.gpu().is_none_or(is_primary) {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        what: format!(
            "a stream of another CUDA context: rank {} of this communicator uses the primary \
             context of its device, as the CUDA runtime does; make the stream there \
             (cuDevicePrimaryCtxRetain, cuCtxSetCurrent)",
            comm.rank()
        ),
    })
}

/// Plans calls of communicators whose device is the current one. Returns what is to be queued for
/// each, and the first error.
///
/// # Errors
/// What is wrong with a stream, before any call counts as made.
///
/// # Safety
/// As for [`launch_calls`].
unsafe fn plan_on<'a>(
    current: &CurrentContext<'_>,
    calls: Vec<StreamCalls<'a>>,
) -> Result<(Vec<BatchMember<'a>>, Result<(), Error>), Error> {
    let mut result = Ok(());
    let mut captures = Vec::with_capacity(calls.len());
    for StreamCalls { stream, comm, .. } in &calls {
        // SAFETY: the caller keeps the streams alive.
        unsafe { check_context(current, comm, *stream)? };
        // SAFETY: as above.
        let capture = match unsafe { CaptureStatus::of(current, stream.0)? } {
            CaptureStatus::None => None::<u64>,
            CaptureStatus::Active(id) => Some(id),
            CaptureStatus::Invalidated => {
                return Err(Error::InvalidUsage {
                    what: String::from(
                        "a call on a stream whose capture was invalidated by an earlier call; end \
                         the capture",
                    ),
                });
            }
        };
        captures.push(capture);
    }
    let mut members: Vec<BatchMember<'_>> = Vec::with_capacity(calls.len());
    for (StreamCalls { comm, calls, stream }, capture) in calls.into_iter().zip(captures) {
        let position = StreamPosition { stream: stream.0 as usize, capture };
        let mut batch = LaunchBatch::new(position);
        for call in &calls {
            // SAFETY: the caller guarantees what `launch_calls` requires.
            let queued = unsafe { comm.queue(call, &mut batch) };
            batch.next_call();
            if let Err(error) = queued {
                result = result.and(Err(error));
                break;
            }
        }
        members.push(BatchMember::new(comm, batch));
    }
    Ok((members, result))
}
