//! Calls of the ABI: run at once, queued on a stream, or queued in the open group.

use maypole::ResultCode;

use super::contents::{check_blocking, is_open, keep_first_error, queue, queue_creation};
use crate::boundary::{NcclResult, guarded};
use crate::config::CommSettings;
use crate::cuda::{self, CommMemory};
use crate::registry::{CommGuard, CommHandle, acquire};
use crate::request::{Creation, CreationBatch, CreationSource, Request, Siblings};
use crate::stream::{self, CallStream, StreamHandle};

/// Runs or queues a call. `check` checks its arguments.
#[inline]
pub(crate) fn submit<R: Request>(
    comm: CommHandle,
    stream: StreamHandle,
    check: impl FnOnce(&CommGuard) -> Result<R, ResultCode>,
) -> NcclResult {
    guarded(|| {
        if is_open() {
            return keep_first_error(enqueue(comm, stream, check));
        }
        let comm = acquire(comm)?;
        comm.check_open()?;
        let request = check(&comm)?;
        match resolve_stream(stream, &comm, &request)? {
            CallStream::Default => comm.run(None, move |context| request.run(context)),
            CallStream::Host(stream) => comm.run(Some(stream), move |context| request.run(context)),
            CallStream::Cuda(stream) => match request.device_call() {
                Some(call) => cuda::launch_call(comm.into_exclusive()?, call, stream),
                None => Ok(()),
            },
        }
    })
}

/// The stream of a request. Refuses a request that the communicator's device does not take.
#[inline]
fn resolve_stream<R: Request>(
    stream: StreamHandle,
    comm: &CommGuard,
    request: &R,
) -> Result<CallStream, ResultCode> {
    let stream = stream::resolve(stream, comm.device())?;
    if let Some(device) = comm.device() {
        request.check_device(device)?;
    }
    Ok(stream)
}

fn enqueue<R: Request>(
    comm: CommHandle,
    stream: StreamHandle,
    check: impl FnOnce(&CommGuard) -> Result<R, ResultCode>,
) -> Result<(), ResultCode> {
    let guard = acquire(comm)?;
    guard.check_open()?;
    let request = check(&guard)?;
    let stream = resolve_stream(stream, &guard, &request)?;
    check_blocking(guard.is_blocking())?;
    queue(comm, stream, || request.into_queued());
    Ok(())
}

/// Creates a communicator and writes its handle to `out`. Returns when the communicator is there;
/// at once, with `ncclInProgress`, if the client does not want to wait; if a group is open, the
/// creation runs at its end.
///
/// # Safety
/// `out` is writable until the call, or the open group, has ended.
pub(crate) unsafe fn create(
    source: CreationSource,
    settings: CommSettings,
    parent: Option<CommHandle>,
    memory: CommMemory,
    out: *mut CommHandle,
) -> Result<(), ResultCode> {
    let waits = Creation::waits(parent, &settings)?;
    check_blocking(waits)?;
    // SAFETY: the caller promises that `out` is writable until the creation ends, if it is waited
    // for, and until the call ends otherwise.
    let creation = unsafe { Creation::begin(source, settings, memory, out, waits) }?;
    if is_open() {
        queue_creation(parent, creation);
        return Ok(());
    }
    let batch = CreationBatch { parent, creations: vec![creation] };
    let batch = batch.join(&Siblings::default());
    if waits { batch.run() } else { batch.start() }
}
