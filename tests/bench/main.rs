//! The `maypole` command and the benchmark programs as a user runs them.

#[path = "../support/cargo_build.rs"]
mod cargo_build;
#[path = "../support/nccl_tests.rs"]
mod nccl_tests;

mod command_line;
mod ncclras;
mod output;
