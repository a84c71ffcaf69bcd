//! One-sided calls over windows: a put, a signal, and a wait for signals.

use std::ffi::{c_int, c_uint, c_void};

use maypole::DeviceCall;
use maypole::ResultCode;
use maypole::WindowId;

use super::failure::failed_call;
use super::{QueuedRequest, Request};
use crate::arguments::{buffer_bytes, check_buffer, data_type, peer};
use crate::boundary::{invalid_argument, refuse};
use crate::layout::NcclWaitSignalDesc;
use crate::registry::{CallContext, CommGuard, WindowHandle};

/// A one-sided call. Its arguments were checked as far as this rank alone can do that.
pub(crate) enum OneSidedRequest {
    /// `ncclPutSignal`
    Put { local: *const u8, bytes: usize, peer: u32, window: WindowId, offset: usize },
    /// `ncclSignal`
    Signal { peer: u32 },
    /// `ncclWaitSignal`: ranks, and how many signals of each.
    Wait(Vec<(u32, u64)>),
}

// SAFETY: the client lends the buffer to the call until it is over, on any thread.
unsafe impl Send for OneSidedRequest {}

/// The arguments of the client for a signal. Only 0 is supported for each.
pub(crate) struct SignalArguments {
    pub(crate) signal: c_int,
    pub(crate) context: c_int,
    pub(crate) flags: c_uint,
}

impl OneSidedRequest {
    /// Checks the arguments of `ncclPutSignal`.
    pub(crate) fn put(
        comm: &CommGuard,
        (local, count, dtype): (*const c_void, usize, c_int),
        peer: c_int,
        (window, offset): (WindowHandle, usize),
        signal: SignalArguments,
    ) -> Result<Self, ResultCode> {
        let peer = self::peer(peer, comm.identity().1)?;
        signal.check()?;
        let size = data_type(dtype)?.size();
        let window = comm.windows().find(window)?.id;
        check_buffer(local, count)?;
        let bytes = buffer_bytes(count, size)?;
        Ok(Self::Put { local: local.cast(), bytes, peer, window, offset })
    }

    /// Checks the arguments of `ncclSignal`.
    pub(crate) fn signal(
        comm: &CommGuard,
        peer: c_int,
        signal: SignalArguments,
    ) -> Result<Self, ResultCode> {
        signal.check()?;
        Ok(Self::Signal { peer: self::peer(peer, comm.identity().1)? })
    }

    /// Checks the arguments of `ncclWaitSignal`.
    pub(crate) fn wait(comm: &CommGuard, waits: &[NcclWaitSignalDesc]) -> Result<Self, ResultCode> {
        let checked = waits.iter().map(|wait| {
            SignalArguments { signal: wait.sig_idx, context: wait.ctx, flags: 0 }.check()?;
            if wait.op_cnt < 1 {
                return Err(invalid_argument(&format!(
                    "ncclWaitSignal: opCnt is {}; it must be 1 or more",
                    wait.op_cnt
                )));
            }
            Ok((peer(wait.peer, comm.identity().1)?, wait.op_cnt as u64))
        });
        Ok(Self::Wait(checked.collect::<Result<_, _>>()?))
    }

    /// Whether the call waits for other ranks.
    pub(crate) fn waits(&self) -> bool {
        matches!(self, Self::Wait(_))
    }
}

impl Request for OneSidedRequest {
    fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        let result = match self {
            Self::Put { local, bytes, peer, window, offset } => {
                // SAFETY: by the terms of nccl.h the client promised a buffer that is valid for the
                // call.
                unsafe { context.comm.put(local, bytes, peer, window, offset) }
            }
            Self::Signal { peer } => context.comm.signal(peer),
            Self::Wait(waits) => context.comm.wait_signals(&waits),
        };
        result.map_err(|error| failed_call(&error, context))
    }

    fn check_device(&self, device: c_int) -> Result<(), ResultCode> {
        Err(refuse(
            ResultCode::InvalidUsage,
            &format!(
                "a one-sided call on a communicator of CUDA device {device}; \
                 ncclCommQueryProperties says hostRmaSupport = false"
            ),
        ))
    }

    fn device_call(&self) -> Option<DeviceCall<'_>> {
        // `check_device` refuses all of them.
        None
    }

    fn into_queued(self) -> QueuedRequest {
        QueuedRequest::OneSided(self)
    }
}

impl SignalArguments {
    fn check(&self) -> Result<(), ResultCode> {
        let &Self { signal, context, flags } = self;
        if (signal, context, flags) == (0, 0, 0) {
            return Ok(());
        }
        Err(invalid_argument(&format!(
            "signal {signal}, context {context}, flags {flags:#x}: all of them must be 0"
        )))
    }
}
