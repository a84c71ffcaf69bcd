//! Collective communication between threads, processes and hosts, on host and GPU memory.
//!
//! One rank makes a [`UniqueId`] and passes its bytes to the others by any means; then every rank
//! builds a [`Communicator`] and calls collectives on slices:
//!
//! ```
//! use maypole::{Communicator, RedOp, UniqueId};
//!
//! let id = UniqueId::create()?;
//! let mut comm = Communicator::new(&id, 0, 1)?; // rank 0 of 1
//! let mut sum = [0.0f32; 3];
//! comm.all_reduce(&[1.0, 2.0, 3.0], &mut sum, RedOp::Sum)?;
//! # Ok::<(), maypole::Error>(())
//! ```
//!
//! Every algorithm is a schedule that is proved, simulated and run as it is. A call goes from
//! [`Communicator::run`] to the tuner, which chooses the schedule, to a plan, which binds the
//! proved schedule to memory and links and is kept for later calls, and to the engine, which runs
//! it. Settings are environment variables, all in [`config`].

mod bootstrap;
mod call;
mod call_signature;
mod channels;
mod clock;
mod comm;
pub mod config;
mod control;
pub mod device;
mod element;
mod engine;
mod error;
mod geometry;
pub mod launch;
mod links;
mod logger;
pub mod memory;
mod plan;
mod process;
mod proxy;
mod secret_file;
mod spin_policy;
pub mod stream;
#[cfg(test)]
mod test_share;
mod topology;
mod transfer;
mod tune;
mod window;

pub use bootstrap::{AbortSignal, BootstrapError, ControlTraffic, Options, RankSet, UniqueId};
pub use call::{Blocks, Call, VectorCall};
pub use comm::{
    AbortHandle, Builder, Communicator, DeviceCall, DeviceCollective, DeviceSlice, DeviceSliceMut,
    MemoryUse, StreamCalls, TransferGroup, launch_calls,
};
pub use config::Config;
pub use control::{DelayReason, Report};
pub use element::Element;
pub use error::{Error, ResultCode};
pub use links::SlotTraffic;
pub use maypole_algorithms::{Collective, DType, RedOp};
pub use maypole_reduce::Reduction;
pub use transfer::Transfer;
pub use tune::{AlgorithmFilter, Choice, Protocol};
pub use window::WindowId;

/// What the C ABI, the `maypole` command and the tests of this workspace need beyond the public
/// interface. It may change at any time.
#[doc(hidden)]
pub mod internal {
    pub use crate::control::status;
    pub use maypole_cuda::nvtx;
    pub use maypole_transport::{handle_state, process, sync};

    pub mod bootstrap {
        pub use crate::bootstrap::*;
    }

    pub mod logger {
        pub use crate::logger::*;
    }

    pub mod reduce {
        pub use maypole_reduce::*;
    }

    pub mod topology {
        pub use crate::topology::*;
    }
}

/// The examples of the page on Rust, as tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/rust.md")]
mod rust_page {}
