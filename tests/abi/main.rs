//! The C ABI as programs see it: headers, symbols, results of calls, installation, profilers.

#[path = "../support/c_program.rs"]
mod c_program;
#[path = "../support/cargo_build.rs"]
mod cargo_build;

mod device;
mod host;
mod install;
mod nvtx;
