//! From checked calls to [`device::launch`]. It queues them and returns: all calls of a group in one launch, so that one thread may be
//! several ranks, and calls of ranks on one device need one launch of the driver.

use maypole::ResultCode;
use maypole::device::{self, CudaStream, Part, Queued};

use crate::boundary::failed;
use crate::group::Calls;
use crate::registry::{self, Entered, Handle};

/// Queues one call.
pub(crate) fn launch_one(
    mut entered: Entered,
    call: Queued<'_>,
    stream: CudaStream,
) -> Result<(), ResultCode> {
    let parts = vec![Part { comm: &mut entered.comm, calls: vec![call], stream }];
    // SAFETY: the client promised, by the terms of nccl.h, buffers and a stream that are valid until the call is over.
    let launched = unsafe { device::launch(parts) };
    launched.map_err(|error| broken(&error, &mut [entered]))
}

/// Queues the calls of a group. What is on several streams waits for all of them, and all of them for it.
pub(crate) fn launch_group(calls: &[(Handle, Calls)]) -> Result<(), ResultCode> {
    let enter = |(comm, _): &(Handle, Calls)| registry::enter(*comm);
    let mut entered = calls.iter().map(enter).collect::<Result<Vec<_>, _>>()?;
    queue(&mut entered, calls).map_err(|error| broken(&error, &mut entered))
}

fn queue(entered: &mut [Entered], calls: &[(Handle, Calls)]) -> Result<(), maypole::Error> {
    for (entered, (_, calls)) in entered.iter().zip(calls) {
        if let Some((ordinal, first, others)) = several(entered, calls) {
            // SAFETY: the client promised, by the terms of nccl.h, live streams of the device.
            unsafe { device::join(ordinal, others, first) }?;
        }
    }
    let parts = entered.iter_mut().zip(calls).filter_map(|(entered, (_, calls))| {
        let stream = *calls.cuda().first()?;
        Some(Part { comm: &mut entered.comm, calls: calls.on_device(), stream })
    });
    // SAFETY: the client promised, by the terms of nccl.h, buffers and streams that are valid until the calls are over.
    unsafe { device::launch(parts.collect()) }?;
    for (entered, (_, calls)) in entered.iter().zip(calls) {
        let Some((ordinal, first, others)) = several(entered, calls) else { continue };
        for other in others {
            // SAFETY: as above.
            unsafe { device::join(ordinal, &[first], *other) }?;
        }
    }
    Ok(())
}

/// The device, and the streams, of calls that are on more than one.
fn several<'a>(entered: &Entered, calls: &'a Calls) -> Option<(i32, CudaStream, &'a [CudaStream])> {
    match (entered.device, calls.cuda()) {
        (Some(ordinal), [first, others @ ..]) if !others.is_empty() => {
            Some((ordinal, *first, others))
        }
        _ => None,
    }
}

/// A launch failed; communicators that are broken by it say so from now on.
#[cold]
fn broken(error: &maypole::Error, entered: &mut [Entered]) -> ResultCode {
    for entered in entered {
        if let Some(error) = entered.comm.async_error() {
            entered.running().broke(error.code());
        }
    }
    failed(error)
}
