//! CUDA devices: what a communicator needs on its device, and functions of devices for programs.
//!
//! A communicator uses either a device or host memory, as its options say when it is made
//! ([`Options::device`](crate::bootstrap::Options)). A call on device memory is queued on a stream
//! ([`launch_calls`](crate::launch_calls)) and run there by the kernel of `maypole_cuda`, which
//! interprets the same proved schedule that a communicator of host memory runs. Without a CUDA
//! driver (libcuda.so.1) there are no devices, and nothing here is used.
//!
//! The folders are layers: `memory`, then `setup`, then `queue`.

pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod setup;

pub use memory::DeviceAllocation;
pub use queue::CudaStreamHandle;
pub use setup::{count, current};
// The C ABI uses these; they are not part of the public interface.
#[doc(hidden)]
pub use memory::{device_of, is_reachable};
#[doc(hidden)]
pub use queue::order_streams;
#[doc(hidden)]
pub use setup::check;
