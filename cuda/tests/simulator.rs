//! Tests of the simulated GPU: it behaves like a real one, and traps where a real one would corrupt
//! memory. The cases are in C (`simulator.c`), each run in a process with its own settings.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The test program, the simulated GPU, and one that lacks functions.
static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu-cases");
    let kernels = root.join("tests/simulator.cu");
    for (folder, without) in [(&built, ""), (&older(), OLDER)] {
        run(Command::new(root.join("../scripts/simulated-gpu"))
            .args(["--without", without, "--kernels"])
            .args([&kernels, folder]));
    }
    run(Command::new("gcc")
        .args(["-std=gnu11", "-g", "-O1", "-Wall", "-Werror", "-pthread", "-Wl,-z,lazy", "-o"])
        .arg(built.join("simulator"))
        .arg(root.join("tests/simulator.c"))
        .arg(built.join("libcuda.so.1")));
    built
});

/// The functions that the simulated older driver lacks; the same as in driver.rs, so that it is
/// built once.
const OLDER: &str = "cuLaunchKernelEx,cuStreamWriteValue64_v2,cuDeviceGetUuid_v2";

fn older() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulated-gpu-older")
}

fn run(command: &mut Command) {
    let done = command.output().expect("the tools of a C compiler are needed");
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
}

/// A time limit far beyond what any case takes: a case that reaches it hangs.
const WATCHDOG: Duration = Duration::from_secs(40);

/// Returns `None` if the case does not end within `limit`.
fn case_within(
    limit: Duration,
    name: &str,
    folder: &Path,
    settings: &[(&str, &str)],
) -> Option<Output> {
    let mut child = Command::new(BUILT.join("simulator"))
        .arg(name)
        .env("LD_LIBRARY_PATH", folder)
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the cases start");
    let deadline = Instant::now() + limit;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("a child");
            child.wait().expect("a child");
            return None;
        }
        sleep(Duration::from_millis(2));
    }
    Some(child.wait_with_output().expect("a child"))
}

fn passes_in(folder: &Path, name: &str, settings: &[(&str, &str)]) {
    let Some(output) = case_within(WATCHDOG, name, folder, settings) else {
        panic!("{name} hangs");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    assert_eq!(output.stdout, b"passed\n", "{name}");
}

fn passes(name: &str, settings: &[(&str, &str)]) {
    passes_in(&BUILT, name, settings);
}

fn traps(name: &str, message: &str) {
    let output = case_within(WATCHDOG, name, &BUILT, &[]).expect("a trap, and no hang");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{name}: {}\n{said}", output.status);
    assert!(said.contains(message), "{name}: {said}");
}

/// It cannot be observed that a case never ends, but that it has not ended after a while. The
/// same case with more room passes.
fn hangs(name: &str, settings: &[(&str, &str)]) {
    let output = case_within(Duration::from_secs(1), name, &BUILT, settings);
    assert!(output.is_none(), "{name} ends with {output:?}");
}

#[test]
fn streams_are_in_order_and_default_streams_synchronise() {
    for name in ["streams", "default_streams", "per_thread"] {
        passes(name, &[]);
    }
}

#[test]
fn events_host_functions_and_values() {
    for name in ["events", "host_functions", "values"] {
        passes(name, &[]);
    }
}

#[test]
fn memory_is_copied_pinned_and_described() {
    passes("copies", &[]);
    passes("pinned", &[]);
    passes("attributes", &[("SIMCUDA_DRIVER_VERSION", "12040")]);
    passes("contexts", &[]);
}

#[test]
fn peers_need_access() {
    passes("peers", &[]);
    passes("peers_forbidden", &[("SIMCUDA_PEERS", "0")]);
    traps("no_peer_access", "device 0 has no access to memory");
}

#[test]
fn memory_traps() {
    traps("host_touches_device", "host code, or a raw pointer in a kernel, touched device memory");
    traps("raw_pointer", "host code, or a raw pointer in a kernel, touched device memory");
    traps("past_the_end", "past an allocation");
    traps("freed", "freed");
}

#[test]
fn memory_and_events_cross_processes() {
    passes("ipc", &[]);
}

#[test]
fn blocks_must_be_resident() {
    passes("residency", &[("SIMCUDA_BLOCKS", "3")]);
    hangs("too_many_blocks_hang", &[("SIMCUDA_BLOCKS", "3")]);
    passes("too_many_blocks_hang", &[("SIMCUDA_BLOCKS", "4")]);
}

#[test]
fn streams_that_share_a_queue_wait_for_each_other() {
    hangs("queues", &[("CUDA_DEVICE_MAX_CONNECTIONS", "1")]);
    passes("queues", &[("CUDA_DEVICE_MAX_CONNECTIONS", "2")]);
}

#[test]
fn calls_and_kernels_fail_by_order_and_are_counted() {
    passes("failures", &[("SIMCUDA_FAIL", "cuMemAlloc_v2:3:2,cuStreamQuery:1:999")]);
    passes("kernel_failure", &[("SIMCUDA_FAIL", "kernel:2:700")]);
    passes("counters", &[]);
}

#[test]
fn devices_are_as_many_as_asked_for() {
    passes("devices", &[("SIMCUDA_DEVICES", "5"), ("CUDA_VISIBLE_DEVICES", "3,1")]);
    passes("no_devices", &[("SIMCUDA_DEVICES", "0")]);
}

#[test]
fn delays_change_no_order() {
    for seed in ["1", "2", "3"] {
        let late = [("SIMCUDA_JITTER_US", "500"), ("SIMCUDA_CALL_JITTER_US", "500")];
        passes("delays", &[late[0], late[1], ("SIMCUDA_SEED", seed)]);
    }
}

#[test]
fn streams_are_captured_and_replayed() {
    for name in ["graphs", "capture_dependencies", "capture_forbids"] {
        passes(name, &[]);
    }
}

#[test]
fn an_older_driver_lacks_functions() {
    LazyLock::force(&BUILT);
    passes_in(&older(), "older_driver", &[]);
}
