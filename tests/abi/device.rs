//! Tests the C ABI on communicators of CUDA devices by C and C++ programs, on the simulated GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::c_program::{compile, output, text, watched};
use tempfile::TempDir;

/// The folder of the simulated GPU.
static GPU: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/simulated-gpu");
    output(Command::new(script).arg(&folder));
    folder
});

/// Runs a program on that many simulated devices.
fn on_devices(program: &Path, devices: u32) -> Command {
    let mut command = watched(program, 100);
    command.env("LD_LIBRARY_PATH", &*GPU).env("MAYPOLE_DEVICE", "cuda");
    command.env("SIMCUDA_DEVICES", devices.to_string()).env_remove("CUDA_VISIBLE_DEVICES");
    // Ranks may share a device.
    command.env("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    command
}

/// Runs parts of a program on that many devices with these variables.
fn parts_of(source: &str, names: &[&str], devices: u32, variables: &[(&str, &str)]) {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc -std=gnu11", source, &folder);
    for name in names {
        let mut command = on_devices(&program, devices);
        command.arg(name).envs(variables.iter().copied());
        println!("{name}: {}", text(&mut command));
    }
}

fn parts(names: &[&str], devices: u32, variables: &[(&str, &str)]) {
    parts_of("device.c", names, devices, variables);
}

fn lifecycle(names: &[&str], devices: u32, variables: &[(&str, &str)]) {
    parts_of("device_lifecycle.c", names, devices, variables);
}

#[test]
fn collectives_are_right_on_a_device_per_rank_and_on_fewer() {
    for devices in [4, 2, 1] {
        parts(&["collectives"], devices, &[]);
    }
}

#[test]
fn calls_return_and_obey_their_streams() {
    parts(&["order", "join"], 4, &[]);
    parts(&["order", "join"], 2, &[]);
}

#[test]
fn one_hardware_queue_is_enough() {
    parts(&["collectives", "many"], 2, &[("CUDA_DEVICE_MAX_CONNECTIONS", "1")]);
}

#[test]
fn one_hardware_queue_is_enough_for_graphs() {
    parts(&["captured"], 2, &[("CUDA_DEVICE_MAX_CONNECTIONS", "1")]);
}

#[test]
fn wrong_arguments_for_a_device_are_refused_with_a_reason() {
    lifecycle(&["refused"], 4, &[]);
}

#[test]
fn memory_comes_from_the_device_that_the_thread_has_chosen() {
    lifecycle(&["memory"], 4, &[]);
}

#[test]
fn communicators_work_on_the_device_chosen_at_the_call() {
    lifecycle(&["lifecycle"], 4, &[]);
}

#[test]
fn aborts_end_kernels_that_wait() {
    lifecycle(&["aborted"], 4, &[]);
    lifecycle(&["aborted"], 2, &[]);
}

#[test]
fn calls_that_differ_are_an_error_on_all_ranks() {
    lifecycle(&["mismatched"], 4, &[]);
}

#[test]
fn a_repeated_call_is_one_launch_and_three_other_driver_calls() {
    parts(&["costs"], 4, &[]);
    parts(&["costs"], 2, &[]);
}

#[test]
fn graphs_are_captured_and_replayed() {
    parts(&["captured"], 4, &[]);
    parts(&["captured"], 2, &[]);
}

#[test]
fn kernels_are_loaded_once_on_each_device() {
    lifecycle(&["loads"], 4, &[]);
}

#[test]
fn a_device_that_a_runtime_has_chosen_without_a_context_is_used() {
    let runtime = TempDir::new().expect("a temporary folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/abi/runtime11.c");
    let library = runtime.path().join("libcudart.so.11.0");
    output(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]));
    let path = format!("{}:{}", GPU.display(), runtime.path().display());
    lifecycle(&["runtime"], 4, &[("LD_LIBRARY_PATH", &path)]);
}

/// Runs a program that other tests run on host memory.
fn program(compiler: &str, source: &str, arguments: &[&str], devices: u32) {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile(compiler, source, &folder);
    println!("{}", text(on_devices(&program, devices).args(arguments)));
}

/// As [`program`], with settings that refuse two ranks on one device.
fn program_of_one_rank_per_device(compiler: &str, source: &str, devices: u32) {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile(compiler, source, &folder);
    println!("{}", text(on_devices(&program, devices).env_remove("NCCL_MULTI_RANK_GPU_ENABLE")));
}

#[test]
fn programs_for_host_memory_run_on_devices() {
    for devices in [4, 2] {
        program("cc", "collectives.c", &["1"], devices);
        program("cc", "collectives.c", &["4"], devices);
    }
    program("c++", "groups.cc", &[], 2);
    program("cc", "rooted.c", &[], 5);
}

#[test]
fn wrong_arguments_return_an_error_on_devices_too() {
    program("cc", "arguments.c", &[], 2);
}

#[test]
fn communicators_begin_and_end_on_devices_as_on_host_memory() {
    program_of_one_rank_per_device("cc", "lifecycle.c", 4);
}

/// Random sequences of calls for `MAYPOLE_FUZZ_SECONDS` seconds, by default 3.
#[test]
fn fuzz_sequences_of_calls_on_devices() {
    let seconds = std::env::var("MAYPOLE_FUZZ_SECONDS").unwrap_or_else(|_| "3".to_owned());
    program("cc", "fuzz.c", &[&seconds], 2);
}

#[test]
fn a_broken_device_is_an_error_only_for_threads_that_have_chosen_it() {
    let automatic = ("MAYPOLE_DEVICE", "auto");
    // Loading machine code fails, and so does loading PTX.
    let first = ("SIMCUDA_FAIL", "cuModuleLoadData:1:209,cuModuleLoadData:2:209");
    lifecycle(&["unusable", "unusable_and_chosen"], 2, &[automatic, first]);
    lifecycle(&["unusable_and_chosen"], 2, &[first]);
}

/// Runs a program of one rank with buffers in host memory under MAYPOLE_DEVICE=auto.
fn automatic(variables: &[(&str, &str)]) -> std::process::Output {
    let folder = TempDir::new().expect("a temporary folder");
    let program = compile("cc", "client/one.c", &folder);
    let mut command = on_devices(&program, 2);
    command.env("MAYPOLE_DEVICE", "auto").env("NCCL_DEBUG", "INFO");
    command.envs(variables.iter().copied()).output().expect("it starts")
}

#[test]
fn without_devices_communicators_work_on_host_memory() {
    for variables in [("SIMCUDA_DEVICES", "0"), ("MAYPOLE_DEVICE", "host")] {
        let done = automatic(&[variables]);
        let log = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && log.contains("on host memory"), "{log}");
        assert!(log.contains("cudaDev 0") && log.contains("host memory, 1 ranks"), "{log}");
    }
    let done = automatic(&[("SIMCUDA_DEVICES", "0"), ("MAYPOLE_DEVICE", "cuda")]);
    let log = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(log.contains("this process sees no CUDA device"), "{log}");
    assert_eq!(done.status.code(), Some(1), "ncclCommInitAll fails");
}
