//! `maypoleBarrier`: returns when all ranks have called it.

use maypole::DeviceCall;
use maypole::ResultCode;

use super::failure::failed_call;
use super::{OrderedRequest, QueuedRequest, Request};
use crate::registry::CallContext;

/// A barrier.
pub(crate) struct BarrierRequest;

impl Request for BarrierRequest {
    fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        context.comm.barrier().map_err(|error| failed_call(&error, context))
    }

    fn device_call(&self) -> Option<DeviceCall<'_>> {
        Some(DeviceCall::Barrier)
    }

    fn into_queued(self) -> QueuedRequest {
        QueuedRequest::Ordered(OrderedRequest::Barrier(self))
    }
}
