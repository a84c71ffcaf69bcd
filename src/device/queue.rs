//! Calls on streams: what is queued, and the one function that queues it.

use std::ffi::c_void;
use std::sync::Arc;

use maypole_cuda::stream::Capture;

use super::gpu::Gpu;
use super::issue::{Batch, Member, issue};
use super::order::Where;
use crate::call::{Call, VectorCall};
use crate::comm::Communicator;
use crate::error::Error;
use crate::transfer::Transfer;
use crate::tune::AlgorithmFilter;

/// A stream of the user, `CUstream`: null and 1 are the legacy default stream, 2 is that of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaStream(pub *mut c_void);

/// One call of a rank, to be queued. Pointers are to memory that the device of the communicator reaches: its own, or that of
/// the host if it is pinned, registered or managed.
#[derive(Clone, Debug)]
pub enum Queued<'a> {
    /// A collective call.
    Collective(Call),
    /// A collective call by one of these algorithms.
    Among(Call, AlgorithmFilter),
    /// A vector collective: its blocks differ in length between ranks.
    Vector(VectorCall<'a>),
    /// A group of sends and receives.
    Transfers(&'a [Transfer]),
    /// A barrier: what is queued later runs when all ranks have come to it.
    Barrier,
}

/// Calls of one communicator, in their order, on one stream.
pub struct Part<'a> {
    /// Of a device.
    pub comm: &'a mut Communicator,
    /// In the order in which all ranks make them.
    pub calls: Vec<Queued<'a>>,
    /// A stream of that device.
    pub stream: CudaStream,
}

/// Queues calls of one or more communicators and returns; nothing waits for their results but what is queued behind them. Calls of
/// communicators of one device are queued together, so that ranks that are driven by one thread need not be queued in turn.
///
/// # Errors
/// What can be found before a call is queued: the communicator then goes on if that is harmless, and is broken otherwise. What goes wrong
/// later is told by [`Communicator::async_error`].
///
/// # Safety
/// As for the calls on host memory ([`Communicator::run`]), from now until the stream is through with them; where the stream is
/// captured, at every replay. Streams are alive, and of the device of their communicator.
pub unsafe fn launch(parts: Vec<Part<'_>>) -> Result<(), Error> {
    let mut first = Ok(());
    let mut parts: Vec<Option<Part<'_>>> = parts.into_iter().map(Some).collect();
    while let Some(gpu) = parts.iter().flatten().find_map(|part| part.comm.gpu()) {
        let here = parts.iter_mut().filter_map(|part| {
            part.take_if(|part| part.comm.gpu().is_some_and(|other| Arc::ptr_eq(&gpu, &other)))
        });
        // SAFETY: the caller's promise.
        let queued = unsafe { launch_on(&gpu, here.collect()) };
        first = first.and(queued);
    }
    match parts.into_iter().flatten().next() {
        None => first,
        Some(part) => Err(Error::InvalidUsage {
            what: format!(
                "a call on a CUDA stream by rank {} of a communicator of host memory; make it with Options::device",
                part.comm.rank()
            ),
        }),
    }
}

/// Queues calls of communicators that are all on `gpu`.
unsafe fn launch_on(gpu: &Gpu, parts: Vec<Part<'_>>) -> Result<(), Error> {
    let current = gpu.device.current()?;
    let mut first = Ok(());
    // What can be wrong with a stream is found before any call counts as made.
    let mut captures = Vec::with_capacity(parts.len());
    for Part { stream, .. } in &parts {
        // SAFETY: the caller's promise.
        let capture = match unsafe { Capture::of(&current, stream.0)? } {
            Capture::None => None::<u64>,
            Capture::Active(id) => Some(id),
            Capture::Invalidated => {
                return Err(Error::InvalidUsage {
                    what: String::from(
                        "a call on a stream whose capture was spoiled before; end the capture",
                    ),
                });
            }
        };
        captures.push(capture);
    }
    let mut members: Vec<Member<'_>> = Vec::with_capacity(parts.len());
    for (Part { comm, calls, stream }, capture) in parts.into_iter().zip(captures) {
        let mut batch = Batch::new(Where { stream: stream.0 as usize, capture });
        for call in &calls {
            // SAFETY: the caller's promise.
            let queued = unsafe { comm.queue(call, &mut batch) };
            batch.next_call();
            if let Err(error) = queued {
                first = first.and(Err(error));
                break;
            }
        }
        members.push(Member::new(comm, batch));
    }
    while let Some(at) = members.first().map(|member| member.batch.at) {
        // In their order.
        let (mut here, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.batch.at == at);
        // SAFETY: the caller's promise.
        let issued = unsafe { issue(&current, gpu, at, &mut here) };
        first = first.and(issued);
        members = others;
    }
    first
}
