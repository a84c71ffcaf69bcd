//! Checks this library on the GPU of this machine and prints one table; see docs/gpu.md.
//! `scripts/gpu-check` builds, packs and runs this program.
//!
//! Each check is a process with a time limit, so that a check that hangs or breaks the device's
//! context is one line of the table and does not end the others. On the simulated GPU, what only a
//! GPU can show is listed as such, and never as passed.

mod abi;
mod carried;
mod effects;
mod elements;
mod gpu;
mod interpreter;
mod order;
mod pair;
mod report;
mod speed;
mod uses;

use gpu::Settings;
use report::{Check, Outcome, Row};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// All checks, in their order.
fn checks() -> Vec<Check> {
    // What only a GPU can show comes early, so that checks that hang leave time for it.
    let [programs, pytorch] = carried::CHECKS;
    let [effects @ .., sanitizer] = effects::CHECKS;
    let early = [&gpu::CHECKS[..], &interpreter::CHECKS, &effects].concat();
    let late = [&abi::CHECKS[..], &uses::CHECKS, &order::CHECKS, &[sanitizer]];
    let early = early.into_iter().chain(speed::CHECKS).chain([pytorch]);
    early.chain(late.concat()).chain([programs]).collect()
}

/// The time limit of all checks together, so that the table is complete within ten minutes.
const IN_ALL: Duration = Duration::from_secs(460);

const USAGE: &str = "usage: gpu-check [--library PATH/libnccl.so.2] [--programs FOLDER]
                 [--json FILE] [NAME...]

Checks the library on GPU 0 of this machine, or only what is named. Ends with 0 if nothing failed.

  --library   the library for the checks through the C ABI; without it they are not run
  --programs  a folder of programs that are checks themselves: each is run, and passes if it ends
              with 0
  --json      writes the results there too";

fn main() -> ExitCode {
    let mut settings = Settings::default();
    let (mut names, mut json, mut one, mut host_bits) = (Vec::new(), None, None, None);
    let mut other = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut path = || arguments.next().map(PathBuf::from);
        match argument.as_str() {
            "--library" => settings.library = path(),
            "--programs" => settings.programs = path(),
            "--json" => json = path(),
            // How the program runs itself, for one check.
            "--one" => one = arguments.next(),
            "--host-bits" => host_bits = path(),
            // The other process of a check.
            "--other" => other = arguments.next(),
            name if !name.starts_with('-') => names.push(name.to_owned()),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    if let Some(file) = host_bits {
        return match abi::write_host_bits(&settings, &file) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(what) = other {
        return match uses::other_process(&settings, &what) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let all = checks();
    if let Some(name) = one {
        let Some(check) = all.iter().find(|check| check.name == name) else {
            eprintln!("gpu-check: there is no check {name}");
            return ExitCode::from(2);
        };
        let outcome = (check.run)(&settings).unwrap_or_else(Outcome::failed);
        report::hand_over(&outcome);
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|check| check.name != *name)) {
        eprintln!("gpu-check: there is no check {unknown}\n{USAGE}");
        return ExitCode::from(2);
    }
    let chosen =
        all.iter().filter(|c| names.is_empty() || names.iter().any(|name| *name == c.name));
    let (mut rows, begin): (Vec<Row>, _) = (Vec::new(), Instant::now());
    for check in chosen {
        let row = match rows.iter().find(|row| row.name == "driver" && row.is_failed()) {
            Some(_) => Row::new(check.name, Outcome::skipped("there is no GPU to check"), 0.0),
            None => report::run(check, &settings, IN_ALL.saturating_sub(begin.elapsed())),
        };
        row.print();
        rows.push(row);
    }
    report::summary(&rows, json.as_deref())
}
