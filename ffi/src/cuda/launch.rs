//! Queues checked calls on streams of CUDA devices, by the library's `launch_calls`.
//!
//! A launch queues the calls and returns. All calls of a group go into one launch, so that one
//! thread can be several ranks, and so that the calls of ranks on one device need one launch of the
//! driver.

use maypole::ResultCode;
use maypole::device::{self, CudaStreamHandle};
use maypole::{DeviceCall, StreamCalls};

use crate::boundary::keep_error;
use crate::registry::{CommHandle, ExclusiveComm, acquire_exclusive};

/// The calls of one communicator in a group.
pub(crate) struct CommLaunch<'a> {
    pub(crate) comm: CommHandle,
    /// The calls, in their order.
    pub(crate) calls: Vec<DeviceCall<'a>>,
    /// The streams that the calls are on, at least one, each once.
    pub(crate) streams: &'a [CudaStreamHandle],
}

/// Queues one call.
pub(crate) fn launch_call(
    mut comm: ExclusiveComm,
    call: DeviceCall<'_>,
    stream: CudaStreamHandle,
) -> Result<(), ResultCode> {
    let parts = vec![StreamCalls { comm: &mut comm.comm, calls: vec![call], stream }];
    // SAFETY: by the terms of nccl.h the client promised buffers and a stream that are valid until
    // the call is over.
    let launched = unsafe { maypole::launch_calls(parts) };
    launched.map_err(|error| failed_launch(&error, &mut [comm]))
}

/// Queues the calls of a group. Calls of a communicator on several streams wait for all of these,
/// and all of these wait for the calls.
pub(crate) fn launch_group(launches: Vec<CommLaunch<'_>>) -> Result<(), ResultCode> {
    let comms = launches.iter().map(|launch| acquire_exclusive(launch.comm));
    let mut comms = comms.collect::<Result<Vec<_>, _>>()?;
    launch_all(&mut comms, launches).map_err(|error| failed_launch(&error, &mut comms))
}

fn launch_all(
    comms: &mut [ExclusiveComm],
    launches: Vec<CommLaunch<'_>>,
) -> Result<(), maypole::Error> {
    let joins: Vec<_> = comms
        .iter()
        .zip(&launches)
        .filter_map(|(comm, launch)| StreamJoin::new(comm, launch.streams))
        .collect();
    for join in &joins {
        // SAFETY: by the terms of nccl.h the client promised live streams of the device.
        unsafe { device::order_streams(join.device, join.others, join.first) }?;
    }
    let parts = comms.iter_mut().zip(launches).filter_map(|(comm, launch)| {
        let stream = *launch.streams.first()?;
        Some(StreamCalls { comm: &mut comm.comm, calls: launch.calls, stream })
    });
    // SAFETY: by the terms of nccl.h the client promised buffers and streams that are valid until
    // the calls are over.
    unsafe { maypole::launch_calls(parts.collect()) }?;
    for join in &joins {
        for other in join.others {
            // SAFETY: the streams are those of the joins above.
            unsafe { device::order_streams(join.device, &[join.first], *other) }?;
        }
    }
    Ok(())
}

/// The streams of a communicator whose calls are on more than one.
struct StreamJoin<'a> {
    device: i32,
    /// The stream that the calls run on.
    first: CudaStreamHandle,
    others: &'a [CudaStreamHandle],
}

impl<'a> StreamJoin<'a> {
    fn new(comm: &ExclusiveComm, streams: &'a [CudaStreamHandle]) -> Option<Self> {
        match (comm.device, streams) {
            (Some(device), [first, others @ ..]) if !others.is_empty() => {
                Some(Self { device, first: *first, others })
            }
            _ => None,
        }
    }
}

/// Records the failure of a launch with each communicator that it broke.
#[cold]
fn failed_launch(error: &maypole::Error, comms: &mut [ExclusiveComm]) -> ResultCode {
    for comm in comms {
        if let Some(error) = comm.comm.async_error() {
            comm.call_context().record_failure(error.code());
        }
    }
    keep_error(error)
}
