//! Runs the `maypole` command: each subcommand, in this process or in several.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::command_line::{self, Invocation, MaypoleCommand};
use crate::compare::{self, Comparison};
use crate::options::Options;
use crate::status::{self, Failure};
use crate::{doctor, environment, launch, measure, nccl_words, ps, topo, verify};

/// Runs the command with the words after the program's name.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let outcome = match command_line::parse(words) {
        Ok(Invocation::Run(command)) => run_command(command),
        Ok(Invocation::Print(text)) => {
            // A reader that does not want the rest, such as `head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(status::FINE)
        }
        Err(failure) => Err(failure),
    };
    ExitCode::from(outcome.unwrap_or_else(|failure| {
        eprintln!("maypole: {failure}");
        failure.status
    }))
}

/// Runs the program of one collective with the words after its name.
pub(crate) fn run_perf(collective: &str, words: &[OsString]) -> ExitCode {
    let read = match nccl_words::read(words) {
        Ok(read) => read,
        Err(failure) => {
            eprintln!("maypole: {failure}");
            return ExitCode::from(failure.status);
        }
    };
    // A process that `-np` started does not say again what the launcher has said.
    if !launch::local::is_launched() {
        let notes = read.notes.iter().map(|note| format!("{note}\n")).collect::<String>();
        // If nobody reads them, the table cannot be written either.
        let _ = std::io::stdout().write_all(notes.as_bytes());
        read.warnings.iter().for_each(|warning| eprintln!("maypole: {warning}"));
    }
    let program = [OsString::from("bench"), OsString::from(collective)];
    run(&[&program[..], &read.words].concat())
}

fn run_command(command: MaypoleCommand) -> Result<u8, Failure> {
    if !matches!(command, MaypoleCommand::Bench(_) | MaypoleCommand::Compare(_)) {
        // The output of these commands may be piped into `head`. (A benchmark must notice a failed
        // write itself, to end its ranks.)
        // SAFETY: no other thread runs yet, and the default action is not a handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    match command {
        MaypoleCommand::Bench(options) => Ok(bench(*options)),
        MaypoleCommand::Compare(comparison) => compare(&comparison.check()?),
        MaypoleCommand::Verify(arguments) => verify::run(arguments),
        MaypoleCommand::Doctor { json } => doctor::run(json),
        MaypoleCommand::Topo(arguments) => topo::run(&arguments),
        MaypoleCommand::Ps { json } => ps::run(json),
        MaypoleCommand::Env { all } => {
            environment::run(all);
            Ok(status::FINE)
        }
        MaypoleCommand::Completions { shell } => {
            let script = command_line::completions(shell);
            std::io::stdout().write_all(&script)?;
            Ok(status::FINE)
        }
    }
}

/// Starts the processes of a benchmark, or runs as one of them. Returns the exit status.
fn bench(options: Options) -> u8 {
    let lookup = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let outcome = match options.complete(&lookup) {
        Ok(options) => match options.processes {
            Some(processes) if !launch::is_launched() => {
                Ok(start(processes, options.ranks_per_process() == 1))
            }
            _ => run_process(options),
        },
        Err(failure) => Err((failure, true)),
    };
    outcome.unwrap_or_else(|(failure, is_reported_here)| {
        if is_reported_here {
            eprintln!("maypole: {failure}");
        }
        failure.status
    })
}

/// A failure, and whether this process reports it.
type ReportedFailure = (Failure, bool);

/// Runs as one process of a benchmark.
fn run_process(options: Options) -> Result<u8, ReportedFailure> {
    maypole::internal::logger::install();
    let launched = launch::find().map_err(|failure| (failure, true))?;
    let is_first = launched.rank == 0;
    measure::run(options, launched).map_err(|failure| {
        let is_reported_here = is_first || !failure.common;
        (failure, is_reported_here)
    })
}

/// Starts the processes of a comparison, or runs as one of them. Returns the exit status.
fn compare(comparison: &Comparison) -> Result<u8, Failure> {
    if comparison.nranks > 1 && !launch::is_launched() {
        return Ok(start(comparison.nranks, true));
    }
    maypole::internal::logger::install();
    let launched = launch::find().map_err(|failure| Failure::usage(failure.text))?;
    let rank = launched.rank;
    Ok(compare::run(comparison, launched).map_or_else(
        |failure| {
            eprintln!("maypole: rank {rank}: {failure}");
            status::FAILED
        },
        |()| status::FINE,
    ))
}

/// Runs this program again as `nranks` processes. Returns the exit status of the whole run.
fn start(nranks: u32, bind: bool) -> u8 {
    let mut program = |_| launch::local::this_program();
    launch::local::launch(&mut program, nranks, bind).unwrap_or_else(|error| {
        eprintln!("maypole: cannot run {nranks} processes: {error}");
        status::SYSTEM
    })
}
