//! Collective communication over host memory: every algorithm is a schedule that is proved, simulated and run.
//!
//! * [`UniqueId::create`] on one rank, its bytes passed to the others by any means
//! * [`Communicator::new`] on every rank
//! * [`Communicator::all_reduce`] and its kin
//!
//! A call goes from [`Communicator::run`] to `tune` (which schedule, and why), `plan` (the proved schedule, bound to memory and
//! links, kept for the next call of its kind) and `engine` (which runs it). Links are `maypole_transport`'s, schedules
//! `maypole_algorithms`'. Settings are environment variables, all in [`config`].

pub mod bootstrap;
mod call;
mod comm;
pub mod config;
mod control;
pub mod device;
mod engine;
pub mod error;
pub mod launch;
pub mod logger;
pub mod memory;
mod plan;
mod process;
mod proxy;
pub mod reduce;
pub mod stream;
pub mod tune;
mod window;

pub use bootstrap::{AbortSignal, Options, UniqueId};
pub use call::{Blocks, Call, VectorCall};
pub use comm::{AbortHandle, Builder, Communicator, Element, MemoryUse};
pub use control::{Reason, Report, live};
pub use engine::Moved;
pub use error::Error;
pub use maypole_algorithms::{Collective, DType, RedOp};
pub use maypole_cuda::nvtx;
pub use plan::exchange::Transfer;
pub use reduce::Reduction;
pub use window::WindowId;
