//! The communicator: a group of ranks that call collectives together.

mod assemble;
mod backend;
mod builder;
mod by_schedule;
mod collectives;
mod device_slice;
mod finish;
mod from_env;
mod group;
mod in_threads;
mod on_device;
mod rank_info;
mod register;
mod run;
mod setup;
mod split;
mod stream_calls;
mod transfer;
mod vector;
mod window;

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_transport::endpoint::Endpoint;

use crate::bootstrap::ControlTraffic;
use crate::call::{Call, Task};
use crate::control::{ControlShared, Report};
use crate::engine::compiled::LlStaging;
use crate::engine::scratch::{ScratchMemory, SendCopy};
use crate::error::Error;
use crate::plan::Plans;
use crate::tune::{Choice, Tuner};
use backend::{DeviceBackend, HostBackend, Membership};

pub use builder::Builder;
pub use device_slice::{DeviceCollective, DeviceSlice, DeviceSliceMut};
pub use group::TransferGroup;
pub use stream_calls::{DeviceCall, StreamCalls, launch_calls};

#[cfg(test)]
mod tests;

/// A group of ranks that call collectives together. One thread at a time uses a communicator; an
/// [`AbortHandle`] is for all other threads.
///
/// Every rank must make the same calls in the same order. A call returns when its result is in the
/// receive buffer. After an error of a call the communicator is broken on all ranks: drop it, or
/// [`shrink`](Self::shrink) it.
///
/// ```
/// use maypole::{Communicator, RedOp, UniqueId};
///
/// let id = UniqueId::create()?;
/// let ranks: Vec<_> = (0..4)
///     .map(|rank| {
///         std::thread::spawn(move || -> Result<f32, maypole::Error> {
///             let mut comm = Communicator::new(&id, rank, 4)?;
///             let mut sum = [0.0f32; 3];
///             comm.all_reduce(&[rank as f32; 3], &mut sum, RedOp::Sum)?;
///             Ok(sum[0])
///         })
///     })
///     .collect();
/// for rank in ranks {
///     assert_eq!(rank.join().expect("the rank ran")?, 0.0 + 1.0 + 2.0 + 3.0);
/// }
/// # Ok::<(), maypole::Error>(())
/// ```
pub struct Communicator {
    rank: Rank,
    nranks: u32,
    /// The device part, for a CUDA device. It is dropped before `host`; see [`backend`].
    device: Option<DeviceBackend>,
    host: HostBackend,
    plans: Plans,
    tuner: Tuner,
    /// The first error of a call. All later calls fail with it.
    broken: Option<Error>,
    membership: Membership,
}

impl Communicator {
    /// This rank's number in the communicator, from 0.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks of the communicator.
    pub fn nranks(&self) -> u32 {
        self.nranks
    }

    /// The number of the CUDA device whose memory the communicator is for; None: host memory.
    pub fn device(&self) -> Option<i32> {
        self.device.as_ref().map(|rank| rank.gpu.device.ordinal())
    }

    /// The connections and messages that this rank needed to find all others.
    pub fn init_traffic(&self) -> ControlTraffic {
        self.membership.init_traffic
    }

    /// The schedule that [`run`](Self::run) would choose for `call`, and why.
    ///
    /// # Errors
    /// No algorithm is allowed for the call.
    pub fn explain(&self, call: &Call) -> Result<Choice, Error> {
        Ok(self.tuner.choose(&Task::from(call))?.1)
    }

    /// The memory that this rank's part of the communicator holds.
    pub fn memory(&self) -> MemoryUse {
        MemoryUse {
            releasable: self.host.scratch.held() + self.host.send_copy.held(),
            lasting: self.host.endpoint.resident_bytes()
                + size_of::<LlStaging>()
                + self.device.as_ref().map_or(0, |rank| rank.pinned_bytes()),
            device: self.device.as_ref().map_or(0, |rank| rank.device_bytes()),
        }
    }

    /// Frees the memory that later calls allocate again when they need it.
    pub fn release_memory(&mut self) {
        self.host.scratch = ScratchMemory::default();
        self.host.send_copy = SendCopy::default();
    }

    /// A handle by which any thread can end all waits in this communicator, on all ranks.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle {
            shared: self.host.control.shared(),
            _endpoint: Arc::clone(&self.host.endpoint),
        }
    }

    /// The error that broke the communicator, if one did; also the abort of another rank.
    pub fn async_error(&self) -> Option<Error> {
        self.broken.clone().or_else(|| self.host.control.final_error())
    }

    /// Whether a call has failed, which broke the communicator. The log says why.
    pub fn has_failed(&self) -> bool {
        self.broken.is_some()
    }

    /// The reports about waits that took longer than `MAYPOLE_REPORT`, oldest first; the last 64.
    /// Each was also logged as a warning. A report is not an error: the call goes on.
    pub fn reports(&self) -> Vec<Report> {
        self.host.control.reports()
    }
}

/// The bytes that a communicator holds in memory of the host and of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// What [`Communicator::release_memory`] frees.
    pub releasable: usize,
    /// The rank's end of its links, as far as it was used; for a CUDA device also pinned memory.
    pub lasting: usize,
    /// Memory of the CUDA device: the inbox, which is allocated at once, programs and scratch.
    pub device: usize,
}

/// Ends all waits in a communicator, on all ranks, from any thread.
#[derive(Clone)]
pub struct AbortHandle {
    shared: Arc<ControlShared>,
    /// Keeps the endpoint alive, which an abort uses.
    _endpoint: Arc<Endpoint>,
}

impl AbortHandle {
    /// Makes every present and future wait in the communicator end with an error, on this rank and
    /// on all others.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// As [`abort`](Self::abort), with [`Error::Revoked`]: other communicators are then made of
    /// this one.
    pub fn revoke(&self) {
        self.shared.revoke();
    }

    /// The same as [`Communicator::async_error`], from any thread, and also during a call. A
    /// failure that only this rank knows of is not visible until the other ranks have been told.
    pub fn async_error(&self) -> Option<Error> {
        self.shared.final_error()
    }
}
