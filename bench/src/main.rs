//! The `maypole` command: benchmarks with nccl-tests' options and columns, proofs on demand, the settings in force.

mod buffers;
mod data;
mod environment;
mod exchange;
mod launch;
mod number;
mod operation;
mod options;
mod prove;
mod rank;
mod status;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use options::Options;

const HELP: &str = "\
maypole COMMAND

  bench COLLECTIVE [OPTIONS]   measure a collective among processes of this host, as nccl-tests does
  verify COLLECTIVE [OPTIONS]  prove the schedules of a collective
  env                          print the variables that the library reads, their values and sources
  COMMAND --help               more
";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let args: Vec<_> = args.collect();
    if !matches!(command.to_str(), Some("bench" | "rank")) {
        // What only prints may be piped into `head`. (A benchmark must see a failed write itself, to end its ranks.)
        // SAFETY: no other thread runs yet, and the default action is not a handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    }
    let outcome = match command.to_str() {
        Some("bench") => bench(args),
        Some("rank") => rank(&args),
        Some("verify") => prove::run(args),
        Some("env") if args.is_empty() => {
            environment::print();
            Ok(status::FINE)
        }
        Some("--help" | "-h" | "help") => {
            print!("{HELP}");
            Ok(status::FINE)
        }
        Some("") | None => Err("which command? See maypole --help".into()),
        Some("env") => Err("env takes no arguments".into()),
        Some(other) => Err(format!("'{other}' is not a command; see maypole --help").into()),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| {
        eprintln!("maypole: {error}");
        status::USAGE
    }))
}

fn bench(args: Vec<OsString>) -> Result<u8, lexopt::Error> {
    let Some(options) = Options::parse(args.clone())? else {
        print!("{}", options::HELP);
        return Ok(status::FINE);
    };
    let nranks = options.nranks;
    let mut program = |rank| launch::myself(rank, &args);
    let patience = Duration::from_secs(options.timeout);
    Ok(launch::launch(&mut program, nranks, patience).unwrap_or_else(|error| {
        eprintln!("maypole: cannot run {nranks} ranks: {error}");
        status::FAILED
    }))
}

/// `maypole rank RANK`, then what followed `maypole bench`: the launcher calls it, nobody else.
fn rank(args: &[OsString]) -> Result<u8, lexopt::Error> {
    let number = |text: &OsString| text.to_str()?.parse::<u32>().ok();
    let Some(rank) = args.first().and_then(number) else {
        return Err("rank is for maypole bench to start".into());
    };
    let Some(options) = Options::parse(args[1..].iter().cloned())? else {
        return Err("rank is for maypole bench to start".into());
    };
    maypole::logger::install();
    Ok(rank::run(&options, rank).unwrap_or_else(|error| {
        eprintln!("maypole: rank {rank}: {error}");
        status::FAILED
    }))
}
