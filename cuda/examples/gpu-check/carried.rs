//! Checks that are separate programs: tests that were built on another machine, and PyTorch.

use crate::gpu::{Settings, device, is_simulated};
use crate::report::{Check, Checked, Outcome, output};
use maypole_cuda::driver::{Device, Driver, LIBRARY};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) const CHECKS: [Check; 2] = [
    Check { name: "programs", seconds: 150, environment: &[], run: programs },
    Check { name: "pytorch", seconds: 240, environment: &[], run: pytorch },
];

fn simulated() -> Result<bool, Box<dyn Error>> {
    let driver = Driver::open(Path::new(LIBRARY))?;
    is_simulated(&*Device::open(&driver, 0)?)
}

/// Runs each file of the folder; one whose name ends in `.sh` by the shell.
fn programs(settings: &Settings) -> Checked {
    let Some(folder) = &settings.programs else {
        return Ok(Outcome::skipped("no folder of programs was given (--programs)"));
    };
    let mut paths: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    let (mut lines, mut failed) = (Vec::new(), paths.is_empty());
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = match path.extension() {
            Some(extension) if extension == "sh" => Command::new("bash"),
            _ => Command::new(path),
        };
        if path.extension().is_some_and(|extension| extension == "sh") {
            command.arg(path);
        }
        let (text, how) = output(command, Duration::from_secs(60))?;
        let right = how == "ended with exit status: 0";
        failed |= !right;
        let last: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let shown = last.len().saturating_sub(if right { 1 } else { 12 });
        lines.push(format!(
            "{name} {}: {}",
            if right { "ok" } else { &how },
            last[shown..].join("\n")
        ));
    }
    let text = format!("{} programs\n{}", paths.len(), lines.join("\n"));
    Ok(match failed {
        true => Outcome::failed(text),
        false => Outcome::passed(text),
    })
}

const SCRIPT: &str = include_str!("pytorch.py");

/// `all_reduce` and others of PyTorch with this library preloaded: one rank, and two on the one
/// GPU.
fn pytorch(settings: &Settings) -> Checked {
    let Some(library) = &settings.library else {
        return Ok(Outcome::skipped("no library was given (--library)"));
    };
    if simulated()? {
        return Ok(Outcome::needs_gpu("CUDA's runtime does not work on the simulated GPU"));
    }
    // Only one process can use a GPU of compute mode EXCLUSIVE_PROCESS (3 of attribute 20).
    let exclusive = device()?.attribute(20)? == 3;
    let python = |arguments: &[&str], seconds| {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).args(arguments).env("LD_PRELOAD", library);
        output(command, Duration::from_secs(seconds))
    };
    // The first import reads gigabytes from the disk.
    let (text, how) = match python(&["look"], 120) {
        Ok(result) => result,
        Err(error) => return Ok(Outcome::skipped(format!("python3 does not start: {error}"))),
    };
    if how != "ended with exit status: 0" {
        let last = text.lines().last().unwrap_or("nothing");
        return Ok(Outcome::skipped(format!("no PyTorch with CUDA here: {last}")));
    }
    let mut lines = vec![text.trim().to_owned()];
    for nranks in if exclusive { &["1"][..] } else { &["1", "2"] } {
        let (text, how) = python(&["run", *nranks], 60)?;
        if how != "ended with exit status: 0" {
            return Ok(Outcome::failed(format!(
                "{}\nwith {nranks} ranks it {how}\n{text}",
                lines.join("\n")
            )));
        }
        lines.push(text.trim().lines().last().unwrap_or_default().to_owned());
    }
    Ok(Outcome::passed(lines.join("\n")))
}
