//! The `maypole` command, and benchmarks over host memory with the programs, options, columns and
//! exit statuses of nccl-tests.
//!
//! [`maypole`] and [`perf`] are whole programs. Each binary of the crate calls one of them and does
//! nothing else.
//!
//! | module | purpose |
//! |---|---|
//! | `grammar` | the rules that the words of all subcommands follow |
//! | `nccl_words` | the command line of nccl-tests' programs |
//! | `command_line`, `command` | the subcommands, and what each runs |
//! | `launch` | the rank of this process and its exchange with the others |
//! | `rank_threads` | the ranks of one process, a thread each |
//! | `options` | what `bench` measures |
//! | `measure` | how: an `operation` over `buffers` of test `data` whose results can be checked |
//! | `call_timing` | the time of repeated calls |
//! | `report` | the table, the JSON file and the picture |
//! | `compare` | all algorithms of a collective beside each other |
//! | `verify` | proofs of schedules |
//! | `doctor`, `topo` | the machine: what will fail or be slow, and its topology |
//! | `ps`, `environment` | the live communicators, the settings |
//! | `ncclras` | the program of NCCL that asks its RAS service |
//! | `hypot` | a function of newer C libraries |
//! | `number`, `status` | elements as numbers; exit statuses and failures |

mod buffers;
mod call_timing;
mod command;
mod command_line;
mod compare;
mod data;
mod doctor;
mod environment;
mod grammar;
mod hypot;
mod launch;
mod measure;
mod nccl_words;
mod ncclras;
mod number;
mod operation;
mod options;
mod ps;
mod rank_threads;
mod report;
mod status;
mod topo;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

/// The `maypole` command, with the arguments of this process.
pub fn maypole() -> ExitCode {
    command::run(&arguments())
}

/// The benchmark of one collective as a program of its own: `all_reduce` for `all_reduce_perf`. It
/// reads its command line as nccl-tests does.
pub fn perf(collective: &str) -> ExitCode {
    command::run_perf(collective, &arguments())
}

/// The program `ncclras` of NCCL, which asks the processes of a job what their communicators do.
pub fn ncclras() -> ExitCode {
    ncclras::run(&arguments())
}

/// The arguments of this process, without the program's name.
fn arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}
