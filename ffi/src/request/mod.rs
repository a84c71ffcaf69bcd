//! Requests: calls whose arguments were checked, and which run at once, on a stream, or at the end
//! of a group.
//!
//! | file | request |
//! |---|---|
//! | `collective` | a collective of `nccl.h` |
//! | `vector` | a collective of `maypole.h` whose blocks differ in length |
//! | `barrier` | `maypoleBarrier` |
//! | `transfer` | a send or a receive |
//! | `one_sided` | a put, a signal, or a wait for signals |
//! | `window` | the registration of a window |
//! | `creation` | communicators that are created |
//! | `siblings` | the creations of one group, which end together when one fails |

mod barrier;
mod collective;
mod creation;
mod failure;
mod one_sided;
mod siblings;
mod transfer;
mod vector;
mod window;

use std::ffi::c_int;

use maypole::{DeviceCall, ResultCode};

use crate::registry::CallContext;

pub(crate) use barrier::BarrierRequest;
pub(crate) use collective::{CollectiveArguments, CollectiveRequest};
pub(crate) use creation::{Creation, CreationBatch, CreationSource, JoinedBatch};
pub(crate) use one_sided::{OneSidedRequest, SignalArguments};
pub(crate) use siblings::Siblings;
pub(crate) use transfer::{TransferRequest, predict_transfers, run_transfers};
pub(crate) use vector::{BlockTable, VectorArguments, VectorRequest};
pub(crate) use window::WindowRequest;

/// A checked call. `group::submit` runs or queues it, whatever its kind.
pub(crate) trait Request: Sized + Send + 'static {
    /// Runs the call; returns when its result is there.
    fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode>;

    /// Refuses a call that a communicator of that CUDA device does not take.
    fn check_device(&self, _device: c_int) -> Result<(), ResultCode> {
        Ok(())
    }

    /// The call for a CUDA device; None for what has no effect there.
    fn device_call(&self) -> Option<DeviceCall<'_>>;

    /// The call as one of those that a group holds.
    fn into_queued(self) -> QueuedRequest;
}

/// A request that waits for the end of its group.
pub(crate) enum QueuedRequest {
    /// A call that runs in the order of the client's calls.
    Ordered(OrderedRequest),
    /// A send or a receive; all those of a group run at once.
    Transfer(TransferRequest),
    /// A put, a signal, or a wait for signals.
    OneSided(OneSidedRequest),
}

/// A request that runs in the order of the client's calls.
pub(crate) enum OrderedRequest {
    Collective(CollectiveRequest),
    Vector(VectorRequest),
    Barrier(BarrierRequest),
    Window(WindowRequest),
}

impl OrderedRequest {
    /// Runs the call; returns when its result is there.
    pub(crate) fn run(self, context: &mut CallContext<'_>) -> Result<(), ResultCode> {
        match self {
            Self::Collective(request) => request.run(context),
            Self::Vector(request) => request.run(context),
            Self::Barrier(request) => request.run(context),
            Self::Window(request) => request.run(context),
        }
    }

    /// The call for a CUDA device.
    pub(crate) fn device_call(&self) -> Option<DeviceCall<'_>> {
        match self {
            Self::Collective(request) => request.device_call(),
            Self::Vector(request) => request.device_call(),
            Self::Barrier(request) => request.device_call(),
            // On a device ncclCommWindowRegister returns NULL and queues nothing.
            Self::Window(_) => None,
        }
    }
}
