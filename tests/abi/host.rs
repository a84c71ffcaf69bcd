//! libnccl.so on host memory as C and C++ programs see it: headers, exported symbols, soname, and
//! the results of all functions.

use std::path::Path;
use std::process::Command;

use crate::c_program::{compile, library, output, text, watched};
use tempfile::TempDir;

/// Runs a program; it is killed after 50 seconds.
fn run(program: &Path, arguments: &[&str]) {
    output(watched(program, 50).args(arguments));
}

/// The committed list of exported symbols, sorted.
const EXPORTS: &str = include_str!("../../ffi/exports.txt");

#[test]
fn exactly_the_abi_is_exported() {
    let symbols = text(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let mut names: Vec<&str> =
        symbols.lines().filter_map(|l| l.split_whitespace().last()).collect();
    names.sort_unstable();
    let listed: Vec<&str> = EXPORTS.lines().collect();
    assert_eq!(names, listed);
    let count = |prefix| listed.iter().filter(|name| name.starts_with(prefix)).count();
    // NCCL exports one more function, without an alias.
    assert_eq!((count("nccl"), count("pnccl")), (97, 96));
}

/// The plain names are weak, so that a tool that is linked in statically may define them; their
/// aliases are not. NCCL's library is the same, but for the one name without an alias.
#[test]
fn the_plain_names_are_weak_symbols() {
    let lib = library();
    let archive = lib.with_extension("a");
    for (tool, file) in [(&["-D", "--defined-only"][..], &lib), (&["--defined-only"], &archive)] {
        let symbols = text(Command::new("nm").args(tool).arg(file));
        let kind = |name: &str| {
            let line = symbols.lines().find(|line| line.ends_with(&format!(" {name}")));
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or("absent").to_owned()
        };
        for name in EXPORTS.lines() {
            let weak = name.starts_with("nccl") && name != "ncclResetDebugInitInternal";
            assert_eq!(kind(name), if weak { "W" } else { "T" }, "{name}");
        }
    }
}

#[test]
fn the_page_describes_every_function() {
    let page = include_str!("../../docs/abi.md");
    let words: Vec<&str> = page.split(|c: char| !c.is_alphanumeric()).collect();
    let functions = EXPORTS.lines().filter(|name| !name.starts_with('p'));
    let missing: Vec<_> = functions.filter(|name| !words.contains(name)).collect();
    assert!(missing.is_empty(), "docs/abi.md lacks {missing:?}");
}

#[test]
fn everything_exported_is_declared_in_c_and_in_cpp() {
    let folder = TempDir::new().expect("a temporary folder");
    // NCCL does not declare this one either.
    let declared = EXPORTS.lines().filter(|name| *name != "ncclResetDebugInitInternal");
    let addresses: String = declared.map(|name| format!("  (fun)(void*){name},\n")).collect();
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

/// Kernels of nccl-tests and of other clients name much that only a GPU can do.
#[test]
fn programs_with_kernels_are_compiled_and_told_that_these_are_not_supported() {
    let folder = TempDir::new().expect("a temporary folder");
    for standard in ["c++11", "c++17", "c++20"] {
        let compiler = format!("c++ -std={standard} -Itests/abi/kernels");
        run(&compile(&compiler, "kernels.cc", &folder), &[]);
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
fn wrong_calls_return_an_error_and_do_not_crash() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "wrong_calls.c", &folder);
    run(&program, &[]);
    // The texts of results refer to the log, so it has to have the reason, also of errors without a
    // communicator.
    let log = text(watched(&program, 50).env("NCCL_DEBUG", "WARN"));
    for reason in ["not a unique id", "rank 1 of 1", "a buffer is NULL"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[test]
fn a_group_lets_one_thread_be_several_ranks() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("c++", "groups.cc", &folder), &[]);
}

#[test]
fn one_init_that_fails_ends_all_of_its_group() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "group_init.c", &folder), &[]);
}

#[test]
fn repeated_groups_start_no_threads_and_none_is_left() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "threads.c", &folder), &[]);
}

#[test]
fn calls_that_do_not_block_end_when_the_communicator_says_so() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "nonblocking.c", &folder), &[]);
}

#[test]
fn a_child_waits_for_no_thread_that_it_does_not_have() {
    let folder = TempDir::new().expect("a temporary folder");
    output(watched(&compile("cc", "forks.c", &folder), 50).env("NCCL_DEBUG", "INFO"));
}

#[test]
fn descriptors_of_the_library_are_no_standard_streams() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "closed_streams.c", &folder), &[]);
}

#[test]
fn host_streams_run_calls_in_order_on_other_threads() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "streams.c", &folder);
    for part in ["order", "join", "drain", "abort", "fork", "exit"] {
        run(&program, &[part]);
    }
}

#[test]
fn ranks_put_to_windows_of_others_and_signal_them() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "windows.c", &folder);
    for link in ["local", "shm", "tcp"] {
        run(&program, &[link]);
    }
}

#[test]
fn the_example_of_the_page_on_streams_works() {
    let page = include_str!("../../docs/streams.md");
    let (_, rest) = page.split_once("```c\n").expect("an example in C");
    let (example, _) = rest.split_once("```").expect("it ends");
    let folder = TempDir::new().expect("a temporary folder");
    let source = folder.path().join("example.c");
    std::fs::write(&source, example).expect("a file in a new folder");
    run(&compile("cc", source.to_str().expect("a path"), &folder), &[]);
}

#[test]
fn an_abort_ends_a_call_that_waits() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "abort.c", &folder), &[]);
}

#[test]
fn every_wrong_argument_returns_an_error_and_does_not_crash() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "arguments.c", &folder), &[]);
}

#[test]
fn an_abort_ends_a_creation() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "abort_init.c", &folder), &[]);
}

#[test]
fn communicators_begin_and_end_as_in_nccl() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "lifecycle.c", &folder), &[]);
}

#[test]
fn collectives_with_a_root_and_groups_are_right() {
    let folder = TempDir::new().expect("a temporary folder");
    run(&compile("cc", "rooted.c", &folder), &[]);
}

/// Random sequences of calls for `MAYPOLE_FUZZ_SECONDS` seconds, by default 3.
#[test]
fn fuzz_sequences_of_calls() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "fuzz.c", &folder);
    let seconds = std::env::var("MAYPOLE_FUZZ_SECONDS").unwrap_or_else(|_| "3".to_owned());
    let limit = 60 + seconds.parse::<u64>().expect("seconds");
    println!("{}", text(watched(&program, limit).arg(&seconds)));
}

fn stress(communicators: u32) {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "stress.c", &folder);
    let mut command = watched(&program, 500);
    command.arg(communicators.to_string());
    // One arena, so that the bytes in use can be counted.
    command.args(["1"]).env("MALLOC_ARENA_MAX", "1");
    println!("{}", text(&mut command));
}

#[test]
fn communicators_leave_nothing_behind() {
    stress(60);
}

#[test]
#[ignore = "the whole run, for scripts/test --full"]
fn a_thousand_communicators_leave_nothing_behind() {
    stress(1000);
}

/// Checks programs for memory errors and definite leaks; a program that runs as several processes,
/// in all of them.
#[test]
#[ignore = "valgrind is slow; for scripts/test --full"]
fn valgrind_finds_no_errors() {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: valgrind is not installed");
        return;
    }
    for (compiler, source, runs) in [
        ("cc", "wrong_calls.c", &[""][..]),
        ("cc", "arguments.c", &[""]),
        ("cc", "lifecycle.c", &[""]),
        ("cc", "abort_init.c", &[""]),
        ("cc", "nonblocking.c", &["valgrind"]),
        ("cc", "rooted.c", &[""]),
        ("cc", "abort.c", &[""]),
        ("cc", "collectives.c", &["2"]),
        ("cc", "streams.c", &["order", "join", "drain", "abort", "exit", "fork"]),
        ("c++", "groups.cc", &[""]),
        ("cc", "blocking.c", &[""]),
        ("cc", "fuzz.c", &["20"]),
        ("cc", "layout.c", &[""]),
        // Not stress.c: it counts what the process holds, which under valgrind is valgrind's.
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let program = compile(&format!("{compiler} -g"), source, &folder);
        for arguments in runs {
            // A child process never frees what it inherited, which would count as a leak.
            let leaks = if *arguments == "fork" { "no" } else { "full" };
            output(
                Command::new("timeout")
                    .args(["--signal=KILL", "300", "valgrind", "--quiet", "--error-exitcode=9"])
                    .arg(format!("--leak-check={leaks}"))
                    .arg("--show-leak-kinds=definite")
                    .args(["--errors-for-leak-kinds=definite", "--fair-sched=yes"])
                    .arg(&program)
                    .args(arguments.split_whitespace())
                    // valgrind may not know the instructions of this machine.
                    .env("MAYPOLE_ISA", "avx2"),
            );
        }
    }
}

/// Checks programs with the sanitizers for addresses and undefined behaviour, which see what the
/// library writes to their memory. Valgrind checks for leaks.
#[test]
#[ignore = "for scripts/test --full"]
fn sanitizers_find_no_errors() {
    let folder = TempDir::new().expect("a temporary folder");
    let sanitized = "cc -g -fsanitize=address,undefined -fno-sanitize-recover=undefined";
    for (source, runs) in [
        ("wrong_calls.c", &[""][..]),
        ("arguments.c", &[""]),
        ("lifecycle.c", &[""]),
        ("nonblocking.c", &[""]),
        ("rooted.c", &[""]),
        ("abort.c", &[""]),
        ("collectives.c", &["3"]),
        ("streams.c", &["order", "join", "drain", "abort", "fork"]),
        ("windows.c", &["local", "shm", "tcp"]),
        ("blocking.c", &[""]),
        ("fuzz.c", &["5"]),
    ] {
        let program = compile(sanitized, source, &folder);
        for arguments in runs {
            let mut command = watched(&program, 100);
            command.args(arguments.split_whitespace()).env("ASAN_OPTIONS", "detect_leaks=0");
            text(&mut command);
        }
    }
}

/// The log of a program of one rank with these variables.
fn log(variables: &[(&str, &str)]) -> String {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "client/one.c", &folder);
    let mut command = watched(&program, 50);
    command.env_remove("NCCL_DEBUG");
    text(command.env("HOME", folder.path()).envs(variables.iter().copied()))
}

#[test]
fn the_log_has_the_lines_that_tools_search_and_names_maypole() {
    assert_eq!(log(&[]), "");
    let version = log(&[("NCCL_DEBUG", "VERSION")]);
    assert!(version.starts_with("NCCL version 2.32.3+maypole"), "{version}");
    let info =
        log(&[("NCCL_DEBUG", "INFO"), ("NCCL_IB_MERGE_NICS", "0"), ("NCCL_NVLS_ENABLE", "0")]);
    for line in [
        "NCCL version 2.32.3",
        "NCCL INFO Maypole ",
        "NCCL INFO Using network Socket",
        "- Init START",
        "- Init COMPLETE",
        "NCCL_DEBUG set by environment to INFO.",
        "NCCL_IB_MERGE_NICS set by environment to 0. It has no effect here: ",
        "NCCL_NVLS_ENABLE set by environment to 0. It has no effect here: ",
    ] {
        assert!(info.contains(line), "no {line:?} in:\n{info}");
    }
}

#[test]
fn settings_come_from_files_and_the_environment_overrides_them() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("settings");
    std::fs::write(&file, "# a file\nNCCL_DEBUG=VERSION\n").expect("a file in a new folder");
    let file = file.to_str().expect("a path");
    assert!(log(&[("NCCL_CONF_FILE", file)]).starts_with("NCCL version"));
    assert_eq!(log(&[("NCCL_CONF_FILE", file), ("NCCL_DEBUG", "WARN")]).lines().count(), 1);
    assert_eq!(log(&[("NCCL_CONF_FILE", "/nowhere")]), "");
}

#[test]
fn the_environment_overrides_blocking() {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "blocking.c", &folder);
    for (value, expected) in [("", "0 7\n"), ("0", "7 7\n"), ("1", "0 0\n"), ("maybe", "0 7\n")] {
        let results = text(watched(&program, 50).env("NCCL_COMM_BLOCKING", value));
        assert_eq!(results, expected, "{value}");
    }
}
