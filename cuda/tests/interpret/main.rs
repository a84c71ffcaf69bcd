//! Tests of the interpreter kernel against a scalar evaluation: schedules among ranks
//! (`schedules`), and operations of one rank (`arithmetic`).
//!
//! On the simulated device unless `MAYPOLE_TEST_CUDA_IMAGE` is set; see `docs/gpu.md`.

mod arithmetic;
mod schedules;
mod support;
