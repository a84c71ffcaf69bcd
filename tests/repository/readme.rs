//! README.md shows the examples in Rust and in C as they are, and they compute what they promise.

use std::path::Path;
use std::process::Command;

use crate::cargo_build;

const README: &str = include_str!("../../README.md");

/// What each example prints, in the order of the ranks.
const SUMS: [&str; 4] = [
    "rank 0: [4.0, 8.0, 6.0]",
    "rank 1: [4.0, 8.0, 6.0]",
    "rank 2: [4.0, 8.0, 6.0]",
    "rank 3: [4.0, 8.0, 6.0]",
];

/// The lines that a program printed, sorted. It is killed after a minute.
fn sorted_lines(program: &Path) -> Vec<String> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(program).env("MAYPOLE_DEVICE", "host");
    let output = command.output().expect("timeout runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("it prints text");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn assert_shown(language: &str, file: &str, source: &str) {
    let block = format!("```{language}\n{source}```\n");
    assert!(README.contains(&block), "copy {file} into a block of code in README.md");
}

#[test]
fn the_readme_shows_the_examples() {
    let rust = include_str!("../../examples/all_reduce.rs");
    assert_shown("rust", "examples/all_reduce.rs", rust);
    let c = include_str!("../../examples/all_reduce.c");
    assert_shown("c", "examples/all_reduce.c", c);
}

#[test]
fn the_example_in_rust_sums() {
    assert_eq!(sorted_lines(&cargo_build::example("all_reduce")), SUMS);
}

#[test]
fn the_example_in_c_sums() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = cargo_build::built("libnccl.so");
    let directory = tempfile::tempdir().expect("a folder");
    let soname = directory.path().join("libnccl.so.2");
    std::os::unix::fs::symlink(library, &soname).expect("a new folder takes a link");
    let program = directory.path().join("all_reduce");
    let mut compiler = Command::new("gcc");
    compiler.args(["-Wall", "-Wextra", "-Werror", "-pthread", "-I"]).arg(root.join("ffi/include"));
    compiler.arg(root.join("examples/all_reduce.c")).arg(&soname).arg("-o").arg(&program);
    compiler.arg(format!("-Wl,-rpath,{}", directory.path().display()));
    assert!(compiler.status().expect("gcc runs").success(), "{compiler:?}");
    assert_eq!(sorted_lines(&program), SUMS);
}

/// Three processes with the variables that torchrun sets.
#[test]
fn hello_finds_its_rank_by_the_launcher() {
    let program = cargo_build::example("hello");
    let port = std::process::id() % 20_000 + 20_000;
    let start = |rank: u32| {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "60"]).arg(&program).env("MAYPOLE_DEVICE", "host");
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "3").env("LOCAL_WORLD_SIZE", "3");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(std::process::Stdio::piped()).spawn().expect("timeout runs")
    };
    let ranks = [0, 1, 2].map(start);
    for (rank, process) in ranks.into_iter().enumerate() {
        let output = process.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("it prints text");
        assert_eq!(text, format!("rank {rank} of 3: the sum of all ranks is 3\n"));
    }
}

#[test]
fn hello_without_a_launcher_is_the_only_rank() {
    assert_eq!(
        sorted_lines(&cargo_build::example("hello")),
        ["rank 0 of 1: the sum of all ranks is 0"]
    );
}
