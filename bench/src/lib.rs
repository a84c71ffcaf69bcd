//! The `maypole` command, and the benchmarks that everyone knows from nccl-tests: its programs, options, columns and exit statuses,
//! over host memory.
//!
//! [`maypole`] and [`perf`] are whole programs; each binary of the crate calls one of them and does nothing else.
//!
//! * `command` - which word of the command line does what
//! * `launch` - where a process stands among the others; `rank_threads` - the ranks that share a process
//! * `options` - what to measure
//! * `measure` - how: `operation`s over `buffers` of `data` that can be checked exactly
//! * `report` - what is printed
//! * `compare` - all algorithms of a collective beside one another
//! * `ps` - what the communicators of this host do

mod buffers;
mod command;
mod compare;
mod data;
mod doctor;
mod environment;
mod json;
mod launch;
mod measure;
mod number;
mod operation;
mod options;
mod ps;
mod rank_threads;
mod report;
mod status;
mod verify;

use std::process::ExitCode;

/// The `maypole` command, with the arguments of this process.
pub fn maypole() -> ExitCode {
    command::run(std::env::args_os().skip(1).collect())
}

/// The benchmark of a collective, as a program of its own: `all_reduce` for `all_reduce_perf`.
pub fn perf(collective: &str) -> ExitCode {
    let mut args = vec!["bench".into(), collective.into()];
    args.extend(std::env::args_os().skip(1));
    command::run(args)
}
