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

/// Compiles a program of `tests/abi` against the headers and the library. The name may begin with options of the compiler.
fn compile(compiler: &str, source: &str, into: &TempDir) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = into.path().join("program");
    // The name that the program will ask for.
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
            .arg(format!("-Wl,-rpath,{}", into.path().display())),
    );
    program
}

/// Runs it, with a watchdog.
fn run(program: &Path, arguments: &[&str]) {
    output(Command::new("timeout").args(["--signal=KILL", "50"]).arg(program).args(arguments));
}

/// The committed list of what is exported, sorted.
const EXPORTS: &str = include_str!("../ffi/exports.txt");

#[test]
fn exactly_the_abi_is_exported() {
    let symbols = text(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let mut names: Vec<&str> =
        symbols.lines().filter_map(|l| l.split_whitespace().last()).collect();
    names.sort_unstable();
    let listed: Vec<&str> = EXPORTS.lines().collect();
    assert_eq!(names, listed);
    let count = |prefix| listed.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((count("nccl"), count("pnccl")), (96, 96));
}

#[test]
fn everything_exported_is_declared_in_c_and_in_cpp() {
    let folder = TempDir::new().expect("a temporary folder");
    let addresses: String =
        EXPORTS.lines().map(|name| format!("  (fun)(void*){name},\n")).collect();
    let source = folder.path().join("all.c");
    let program = format!(
        "#include <maypole.h>\n#include <nccl_device.h>\ntypedef void (*fun)(void);\n\
         static fun const all[] = {{\n{addresses}}};\n\
         int main(void) {{\n  for (unsigned i = 0; i < sizeof all / sizeof *all; i++)\n    \
         if (!all[i]) return 1;\n  return 0;\n}}\n"
    );
    std::fs::write(&source, program).expect("a file in a new folder");
    let source = source.to_str().expect("a path");
    for compiler in ["cc -x c", "c++ -x c++"] {
        run(&compile(compiler, source, &folder), &[]);
    }
}

#[test]
fn the_layout_is_the_one_that_programs_were_compiled_for() {
    let folder = TempDir::new().expect("a temporary folder");
    for compiler in ["cc -std=c11 -x c", "c++ -std=c++11 -x c++"] {
        for cuda in ["", " -Itests/abi/cuda", " -Itests/abi/cuda -DMAYPOLE_NO_CUDA"] {
            run(&compile(&format!("{compiler}{cuda}"), "layout.c", &folder), &[]);
        }
    }
}

#[test]
fn the_soname_is_the_one_that_clients_ask_for() {
    let dynamic = text(Command::new("readelf").arg("-d").arg(library()));
    assert!(dynamic.contains("[libnccl.so.2]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let allowed = ["[libc.so.6]", "[libm.so.6]", "[libgcc_s.so.1]", "[ld-linux"];
    let strange: Vec<_> =
        needed.filter(|line| !allowed.iter().any(|name| line.contains(name))).collect();
    assert!(strange.is_empty(), "{strange:?}");
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
