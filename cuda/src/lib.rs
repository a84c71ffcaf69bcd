//! Schedules on CUDA devices: encoded as flat words ([`encode`]) and run by one kernel per call
//! and rank (`kernels/interpret.cu`).
//!
//! All calls to a device go through [`driver`], which opens libcuda at run time. The tests open a
//! simulated device instead; see `docs/simulated-gpu.md`.

pub mod driver;
pub mod encode;
pub mod image;
pub mod ipc;
pub mod launch;
pub mod memory;
pub mod module;
pub mod nvtx;
mod once;
pub mod pool;
pub mod stream;
