//! The collectives of `nccl.h`: the check of their arguments, and how they run.

use std::ffi::{c_int, c_void};

use maypole::AlgorithmFilter;
use maypole::DeviceCall;
use maypole::ResultCode;
use maypole::{Call, Collective, RedOp};

use super::failure::failed_call;
use super::{OrderedRequest, QueuedRequest, Request};
use crate::arguments::{buffer_bytes, check_buffer, check_root, data_type};
use crate::boundary::log_error;
use crate::registry::{CallContext, CommGuard, ExclusiveComm, ReductionOperator};

/// The arguments of the client, except the collective.
pub(crate) struct CollectiveArguments {
    pub(crate) send: *const c_void,
    pub(crate) recv: *mut c_void,
    /// Elements, as `nccl.h` counts them for this collective.
    pub(crate) count: usize,
    /// `ncclDataType_t`
    pub(crate) dtype: c_int,
    /// `ncclRedOp_t`
    pub(crate) op: c_int,
}

/// A checked collective. Only a factor in memory is still to be read.
pub(crate) struct CollectiveRequest {
    call: Call,
    operator: ReductionOperator,
    /// The algorithms that the call may use, if it may not use all.
    algorithms: Option<Box<AlgorithmFilter>>,
}

// SAFETY: the client lends the buffers to the call until it is over, on any thread.
unsafe impl Send for CollectiveRequest {}

impl CollectiveRequest {
    /// Checks the arguments.
    #[inline]
    pub(crate) fn check(
        collective: Collective,
        arguments: CollectiveArguments,
        algorithms: Option<Box<AlgorithmFilter>>,
        comm: &CommGuard,
    ) -> Result<Self, ResultCode> {
        let CollectiveArguments { mut send, recv, count, dtype, op } = arguments;
        let dtype = data_type(dtype)?;
        let operator = comm.operators().find(op, dtype)?;
        let (rank, nranks) = comm.identity();
        // A buffer that this rank does not use may be any pointer.
        let (mut sends, mut receives) = (true, true);
        if let Some(root) = collective.root() {
            check_root(root, nranks)?;
            match collective {
                Collective::Reduce { .. } | Collective::Gather { .. } => receives = rank == root,
                Collective::Scatter { .. } => sends = rank == root,
                // Off the root a broadcast runs as if in place.
                _ if root != rank => send = recv.cast_const(),
                _ => {}
            }
        }
        if sends {
            check_buffer(send, count)?;
        }
        if receives {
            check_buffer(recv, count)?;
        }
        let blocks = match collective {
            Collective::AllReduce | Collective::Broadcast { .. } | Collective::Reduce { .. } => 1,
            _ => nranks as usize,
        };
        buffer_bytes(count, blocks * dtype.size())?;
        let call = Call {
            collective,
            send: send.cast(),
            recv: recv.cast(),
            count,
            dtype,
            reduction: RedOp::Sum.into(),
        };
        Ok(Self { call, operator, algorithms })
    }

    /// The microseconds that the cost model predicts.
    pub(crate) fn predict(&self, comm: &ExclusiveComm) -> Result<f64, ResultCode> {
        if self.call.count == 0 {
            return Ok(0.0);
        }
        let choice = comm.comm.explain(&self.call).map_err(|error| log_error(&error))?;
        Ok(choice.predicted)
    }
}

impl Request for CollectiveRequest {
    #[inline]
    fn run(mut self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        self.call.reduction = self.operator.resolve(self.call.dtype);
        let result = match &self.algorithms {
            // SAFETY: by the terms of nccl.h the client promised buffers that are valid for the
            // call.
            None => unsafe { context.comm.run(&self.call) },
            // SAFETY: as above.
            Some(algorithms) => unsafe { context.comm.run_among(&self.call, algorithms) },
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(failed_call(&error, context)),
        }
    }

    fn device_call(&self) -> Option<DeviceCall<'_>> {
        let call = Call { reduction: self.operator.for_device(), ..self.call };
        Some(match &self.algorithms {
            None => DeviceCall::Collective(call),
            Some(algorithms) => DeviceCall::Among(call, (**algorithms).clone()),
        })
    }

    fn into_queued(self) -> QueuedRequest {
        QueuedRequest::Ordered(OrderedRequest::Collective(self))
    }
}
