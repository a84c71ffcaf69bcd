//! Schedules on CUDA devices: encoded into flat words ([`encode`]), run by one kernel per call and rank (`kernels/interpret.cu`).
//!
//! Everything reaches the device through [`driver`], which finds libcuda at run time. The tests give it a simulated device
//! instead; see `docs/gpu.md`.

pub mod driver;
pub mod encode;
pub mod image;
pub mod ipc;
pub mod launch;
pub mod memory;
pub mod nvtx;
pub mod stream;
