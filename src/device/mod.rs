//! Communicators over the memory of CUDA devices.
//!
//! A communicator is of a device or of the host, as [`Options::device`](crate::bootstrap::Options) says at its init. A call of one of a
//! device is queued on a stream ([`launch`]) and runs there by the kernel of `maypole_cuda`, which interprets the same proved schedule that
//! a host communicator walks. Without a driver, libcuda.so.1, all of this is idle: there are no devices.

pub(crate) mod arrive;
pub(crate) mod card;
mod detect;
pub(crate) mod gpu;
pub(crate) mod group;
pub(crate) mod inbox;
pub(crate) mod issue;
mod join;
mod memory;
pub(crate) mod order;
pub(crate) mod pool;
pub(crate) mod program;
mod queue;
pub(crate) mod rank;
mod scratch;
pub(crate) mod signals;
mod store;

pub use detect::{check, count, current};
pub use join::join;
pub use memory::{Allocation, is_known, owner};
pub use queue::{CudaStream, Part, Queued, launch};
