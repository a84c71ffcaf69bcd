//! Builds programs of `tests/abi` against our headers and library, and runs them with a watchdog.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::cargo_build;

/// The path of the shared library.
pub(crate) fn library() -> PathBuf {
    cargo_build::built("libnccl.so")
}

/// Runs a command and returns its output; panics if it failed.
pub(crate) fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command and returns its standard output; panics if it failed.
pub(crate) fn text(command: &mut Command) -> String {
    String::from_utf8(output(command).stdout).expect("tools write text")
}

/// Compiles a program of `tests/abi` against the headers and the library. `compiler` may have
/// options after its name.
pub(crate) fn compile(compiler: &str, source: &str, into: &TempDir) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = into.path().join("program");
    // The soname, by which the program finds the library.
    let soname = into.path().join("libnccl.so.2");
    if !soname.exists() {
        std::os::unix::fs::symlink(library(), &soname).expect("a new folder takes a link");
    }
    let mut words = compiler.split_whitespace();
    output(
        Command::new(words.next().expect("a compiler"))
            .args(words)
            .args(["-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
            .arg(root.join("ffi/include"))
            .current_dir(root)
            .arg("-o")
            .arg(&program)
            .arg(root.join("tests/abi").join(source))
            .args(["-x", "none"])
            .arg(&soname)
            .arg("-ldl")
            .arg(format!("-Wl,-rpath,{}", into.path().display())),
    );
    program
}

/// A command that runs a program on host memory and kills it after that many seconds.
pub(crate) fn watched(program: &Path, seconds: u64) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &seconds.to_string()])
        .arg(program)
        .env("MAYPOLE_DEVICE", "host");
    command
}
