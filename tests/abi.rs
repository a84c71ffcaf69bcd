//! libnccl.so as C and C++ programs see it: its header, its exports, its soname, and what the functions answer.

mod artifact;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn library() -> PathBuf {
    artifact::built("maypole-ffi", "libnccl.so")
}

fn output(command: &mut Command) -> Output {
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

fn text(command: &mut Command) -> String {
    String::from_utf8(output(command).stdout).expect("tools write text")
}

/// Compiles a program of `tests/abi` against the header and the library.
fn compile(compiler: &str, source: &str, into: &TempDir) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = into.path().join("program");
    let library = library();
    // The name that the program will ask for.
    let soname = into.path().join("libnccl.so.2");
    std::os::unix::fs::symlink(&library, &soname).expect("a new folder takes a link");
    output(
        Command::new(compiler)
            .args(["-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
            .arg(root.join("ffi/include"))
            .arg("-o")
            .arg(&program)
            .arg(root.join("tests/abi").join(source))
            .arg(&soname)
            .arg(format!("-Wl,-rpath,{}", into.path().display())),
    );
    program
}

/// Runs it, with a watchdog.
fn run(program: &Path, arguments: &[&str]) {
    output(Command::new("timeout").args(["--signal=KILL", "50"]).arg(program).args(arguments));
}

#[test]
fn only_the_abi_is_exported() {
    let symbols = text(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let names: Vec<&str> = symbols.lines().filter_map(|l| l.split_whitespace().last()).collect();
    assert!(names.contains(&"ncclAllReduce"), "{names:?}");
    let prefixes = ["nccl", "pnccl", "maypole"];
    let stray: Vec<_> =
        names.iter().filter(|name| !prefixes.iter().any(|p| name.starts_with(p))).collect();
    assert!(stray.is_empty(), "{stray:?}");
}

#[test]
fn everything_exported_is_declared() {
    let header = include_str!("../ffi/include/nccl.h");
    let symbols = text(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    for name in symbols.lines().filter_map(|l| l.split_whitespace().last()) {
        assert!(
            header.contains(&format!(" {name}(")) || header.contains(&format!("*{name}(")),
            "{name}"
        );
    }
}

#[test]
fn the_soname_is_the_one_that_clients_ask_for() {
    let dynamic = text(Command::new("readelf").arg("-d").arg(library()));
    assert!(dynamic.contains("[libnccl.so.2]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[test]
fn collectives_are_right_among_processes() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "collectives.c", &folder);
    for nranks in ["1", "2", "4"] {
        run(&program, &[nranks]);
    }
}

#[test]
fn wrong_calls_are_answered_and_not_crashed_on() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "answers.c", &folder), &[]);
}

#[test]
fn a_group_lets_one_thread_be_several_ranks() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("c++", "groups.cc", &folder), &[]);
}

#[test]
fn an_abort_ends_a_call_that_waits() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "abort.c", &folder), &[]);
}
