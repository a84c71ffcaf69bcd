//! The `maypole` command, and the benchmarks that everyone knows from nccl-tests: its programs, options, columns and exit statuses,
//! over host memory.
//!
//! [`maypole`] and [`perf`] are whole programs; each binary of the crate calls one of them and does nothing else.
//!
//! * [`command`] - which word of the command line does what
//! * [`launch`] - where a process stands among the others
//! * [`options`] - what to measure
//! * [`rank`] - a rank's work: [`operation`]s over [`buffers`] of [`data`] that can be checked exactly
//! * [`table`] - what is printed
//! * [`ps`] - what the communicators of this host do
//! * [`compare`] - all algorithms of a collective beside one another

mod buffers;
mod command;
mod compare;
mod data;
mod environment;
mod json;
mod launch;
mod number;
mod operation;
mod options;
mod prove;
mod ps;
mod rank;
mod status;
mod table;
mod watchdog;

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
