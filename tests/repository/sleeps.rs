//! The sleeps that are left in tests, with their reasons. No sleep decides a result: a test passes
//! also where a thread sleeps for much longer than it wants to.

use std::path::{Path, PathBuf};

/// Looks again after a while whether a state has come, until a watchdog ends the test.
const LOOKS_AGAIN: &str = "looks again whether a state has come";
/// Gives other ranks time, so that the test most often meets the case that it is about. It passes
/// also when it does not meet it.
const MEETS_THE_CASE: &str = "gives others time to come into the state that is tested";
/// The time is part of what is tested: a rank that is late, for which others have to wait.
const IS_LATE: &str = "is the lateness that others must bear or report";

/// The files of tests in which threads sleep, and what for.
const SLEEPS: &[(&str, &[&str])] = &[
    ("cuda/tests/interpret/schedules.rs", &[MEETS_THE_CASE]),
    ("cuda/tests/interpret/support/alone.rs", &[LOOKS_AGAIN]),
    ("cuda/tests/interpret/support/ranks.rs", &[LOOKS_AGAIN]),
    ("cuda/tests/simulator.rs", &[LOOKS_AGAIN]),
    ("src/bootstrap/tests/mod.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("src/bootstrap/tests/several.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("src/comm/tests/ends.rs", &[MEETS_THE_CASE]),
    ("src/comm/tests/on_device/ends.rs", &[LOOKS_AGAIN]),
    ("src/launch/rendezvous.rs", &[LOOKS_AGAIN]),
    ("src/proxy/tests.rs", &[MEETS_THE_CASE]),
    ("tests/bench/command_line.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("tests/bench/output.rs", &[LOOKS_AGAIN]),
    ("tests/gpu/proxy.rs", &[IS_LATE]),
    ("tests/isolated/abort.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("tests/isolated/capture.rs", &[LOOKS_AGAIN]),
    ("tests/isolated/strangers.rs", &[LOOKS_AGAIN]),
    ("tests/ranks/communicators.rs", &[MEETS_THE_CASE, IS_LATE]),
    ("tests/ranks/control/processes.rs", &[LOOKS_AGAIN, MEETS_THE_CASE, IS_LATE]),
    ("tests/ranks/control/waits.rs", &[MEETS_THE_CASE, IS_LATE]),
    ("tests/ranks/ends.rs", &[LOOKS_AGAIN]),
    ("tests/ranks/fault.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("tests/ranks/hosts.rs", &[IS_LATE]),
    ("tests/ranks/memory.rs", &[MEETS_THE_CASE, IS_LATE]),
    ("tests/ranks/processes.rs", &[MEETS_THE_CASE, IS_LATE]),
    ("tests/support/intruders.rs", &[LOOKS_AGAIN]),
    ("transport/src/conformance/mod.rs", &[MEETS_THE_CASE]),
    ("transport/tests/rdma_faults.rs", &[LOOKS_AGAIN]),
    ("transport/tests/streams.rs", &[LOOKS_AGAIN, MEETS_THE_CASE]),
    ("transport/tests/strangers.rs", &[MEETS_THE_CASE]),
    ("transport/tests/two_processes.rs", &[IS_LATE]),
];

/// The folders with sources.
const FOLDERS: [&str; 10] = [
    "algorithms",
    "bench",
    "control",
    "cuda",
    "ffi",
    "reduce",
    "src",
    "tests",
    "transport",
    "verbs",
];

#[test]
fn every_sleep_in_a_test_has_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in FOLDERS {
        collect_sources(&root.join(folder), &mut sources);
    }
    assert!(sources.len() > 300, "only {} files were found", sources.len());
    let mut unlisted = Vec::new();
    for path in sources {
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        let is_test =
            ["tests/", "/tests.rs", "conformance/"].iter().any(|part| name.contains(part));
        let text = std::fs::read_to_string(&path).expect("a source file");
        // Unit tests are at the end of a file.
        let tests = if is_test { 0 } else { text.find("#[cfg(test)]\nmod ").unwrap_or(text.len()) };
        let sleeps = |line: &str| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("thread::sleep(") || code.contains(" sleep(Duration")
        };
        let is_listed = SLEEPS.iter().any(|(file, reasons)| *file == name && !reasons.is_empty());
        if text[tests..].lines().any(sleeps) && !is_listed && name != "tests/repository/sleeps.rs" {
            unlisted.push(name);
        }
    }
    assert!(
        unlisted.is_empty(),
        "these tests sleep; let them wait for the event itself, or list them with a reason: \
         {unlisted:?}"
    );
}

/// The Rust files below a folder.
fn collect_sources(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}
