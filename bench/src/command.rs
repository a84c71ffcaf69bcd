//! The `maypole` command: which word does what.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::compare::{self, Request};
use crate::options::{self, Options};
use crate::status::{self, Failure};
use crate::{doctor, environment, launch, measure, ps, verify};

const HELP: &str = "\
maypole COMMAND

  bench COLLECTIVE [OPTIONS]   measure a collective among processes of this host, as nccl-tests does
  compare COLLECTIVE [OPTIONS] measure all algorithms of a collective in turns, beside what the cost model expects
  verify COLLECTIVE [OPTIONS]  prove the schedules of a collective
  doctor [--json]              look at this machine: what will hurt, what that means, what to change
  ps [--json]                  list the live communicators of this host and what each rank does
  env [--all]                  print the variables that the library reads, their values and sources
  --version                    this program's version, and the MPI that it was built with
  COMMAND --help               more
";

/// Runs the command with these arguments.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let command = args.next().unwrap_or_default();
    let args: Vec<_> = args.collect();
    if !matches!(command.to_str(), Some("bench" | "compare")) {
        // What only prints may be piped into `head`. (A benchmark must see a failed write itself, to end its ranks.)
        // SAFETY: no other thread runs yet, and the default action is not a handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let outcome = match command.to_str() {
        Some("bench") => Ok(bench(args)),
        Some("compare") => compare(args),
        Some("verify") => verify::run(args),
        Some("doctor") => doctor::run(&args),
        Some("ps") => ps::run(&args),
        Some("env") => environment::run(&args),
        Some("--version" | "-V") => {
            let mpi = launch::mpi().map_or("without MPI".to_owned(), |mpi| format!("with {mpi}"));
            println!("maypole {}, {mpi}", env!("CARGO_PKG_VERSION"));
            Ok(status::FINE)
        }
        Some("--help" | "-h" | "help") => {
            print!("{HELP}");
            Ok(status::FINE)
        }
        Some("") | None => Err("which command? See maypole --help".into()),
        Some(other) => Err(format!("'{other}' is not a command; see maypole --help").into()),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| {
        eprintln!("maypole: {error}");
        status::USAGE
    }))
}

/// Starts the processes of a benchmark, or is one of them.
fn bench(args: Vec<OsString>) -> u8 {
    let lookup = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let outcome = match Options::parse(args, &lookup) {
        Ok(None) => {
            print!("{}", options::HELP);
            return status::FINE;
        }
        Ok(Some(options)) => match options.processes {
            Some(processes) if !launch::is_launched() => {
                Ok(start(processes, options.ranks_per_process() == 1))
            }
            _ => one_of_them(options),
        },
        Err(failure) => Err((failure, true)),
    };
    outcome.unwrap_or_else(|(failure, speaks)| {
        if speaks {
            eprintln!("maypole: {failure}");
        }
        failure.status
    })
}

/// A failure, and whether it is for this process to tell.
type Told = (Failure, bool);

fn one_of_them(options: Options) -> Result<u8, Told> {
    maypole::internal::logger::install();
    let place = launch::find().map_err(|error| (error.into(), true))?;
    let first = place.rank == 0;
    measure::run(options, place).map_err(|failure| {
        let speaks = first || !failure.common;
        (failure, speaks)
    })
}

/// Starts the processes of a comparison, or is one of them.
fn compare(args: Vec<OsString>) -> Result<u8, lexopt::Error> {
    let Some(request) = Request::parse(args)? else {
        print!("{}", compare::HELP);
        return Ok(status::FINE);
    };
    if request.nranks > 1 && !launch::is_launched() {
        return Ok(start(request.nranks, true));
    }
    maypole::internal::logger::install();
    let place = launch::find().map_err(|error| error.to_string())?;
    let rank = place.rank;
    Ok(compare::run(&request, place).map_or_else(
        |error| {
            eprintln!("maypole: rank {rank}: {error}");
            status::FAILED
        },
        |()| status::FINE,
    ))
}

/// This command again, as that many processes; returns the exit status of them all.
fn start(nranks: u32, bind: bool) -> u8 {
    launch::local::launch(&mut |_| launch::local::this_program(), nranks, bind).unwrap_or_else(
        |error| {
            eprintln!("maypole: cannot run {nranks} processes: {error}");
            status::SYSTEM
        },
    )
}
