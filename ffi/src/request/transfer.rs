//! Sends and receives between two ranks.

use std::ffi::{c_int, c_void};

use maypole::DeviceCall;
use maypole::ResultCode;
use maypole::{Call, Collective, DType, RedOp, Transfer};

use super::failure::failed_call;
use super::{QueuedRequest, Request};
use crate::arguments::{buffer_bytes, check_buffer, data_type, peer};
use crate::boundary::log_error;
use crate::registry::{CallContext, CommGuard, ExclusiveComm};

/// A checked send or receive.
pub(crate) struct TransferRequest([Transfer; 1]);

// SAFETY: the client lends the buffer to the call until it is over, on any thread.
unsafe impl Send for TransferRequest {}

impl TransferRequest {
    /// Checks the arguments. `transfer` builds the transfer from its bytes and its peer.
    pub(crate) fn check(
        buffer: *const c_void,
        count: usize,
        dtype: c_int,
        peer: c_int,
        comm: &CommGuard,
        transfer: impl FnOnce(usize, u32) -> Transfer,
    ) -> Result<Self, ResultCode> {
        let peer = self::peer(peer, comm.identity().1)?;
        let bytes = buffer_bytes(count, data_type(dtype)?.size())?;
        check_buffer(buffer, bytes)?;
        Ok(Self([transfer(bytes, peer)]))
    }

    /// The transfer itself.
    pub(crate) fn into_transfer(self) -> Transfer {
        let Self([transfer]) = self;
        transfer
    }
}

impl Request for TransferRequest {
    fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        run_transfers(&self.0, context)
    }

    fn device_call(&self) -> Option<DeviceCall<'_>> {
        Some(DeviceCall::Transfers(&self.0))
    }

    fn into_queued(self) -> QueuedRequest {
        QueuedRequest::Transfer(self)
    }
}

/// Runs transfers all at once.
pub(crate) fn run_transfers(
    transfers: &[Transfer],
    context: &mut CallContext<'_>,
) -> Result<(), ResultCode> {
    // SAFETY: by the terms of nccl.h the client promised buffers that are valid for the call.
    match unsafe { context.comm.exchange(transfers) } {
        Ok(()) => Ok(()),
        Err(error) => Err(failed_call(&error, context)),
    }
}

/// The microseconds that the cost model predicts for transfers that run at once: those of an
/// all-to-all whose blocks are as large as the largest transfer.
pub(crate) fn predict_transfers(
    transfers: &[Transfer],
    comm: &ExclusiveComm,
) -> Result<f64, ResultCode> {
    let bytes = |transfer: &Transfer| match *transfer {
        Transfer::Send { bytes, .. } | Transfer::Receive { bytes, .. } => bytes,
    };
    let call = Call {
        collective: Collective::AllToAll,
        send: std::ptr::null(),
        recv: std::ptr::null_mut(),
        count: transfers.iter().map(bytes).max().unwrap_or(0),
        dtype: DType::Uint8,
        reduction: RedOp::Sum.into(),
    };
    if call.count == 0 {
        return Ok(0.0);
    }
    let choice = comm.comm.explain(&call).map_err(|error| log_error(&error))?;
    Ok(choice.predicted)
}
