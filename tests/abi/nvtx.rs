//! Tests that calls of the C ABI are NVTX ranges for the profiler that `NVTX_INJECTION64_PATH`
//! names.

use std::path::Path;

use crate::c_program::{compile, output, watched};
use tempfile::TempDir;

/// The standard error of `tests/abi/nvtx.c` with that value of the variable.
fn profiler_output(program: &Path, injection: Option<&Path>) -> Vec<String> {
    let mut command = watched(program, 50);
    command.env_remove("NVTX_INJECTION64_PATH").env_remove("NCCL_DEBUG");
    if let Some(path) = injection {
        command.env("NVTX_INJECTION64_PATH", path);
    }
    let text = String::from_utf8(output(&mut command).stderr).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn calls_are_ranges_for_a_profiler_and_silent_without_one() {
    let (folder, tools) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let program = compile("cc", "nvtx.c", &folder);
    let tool = compile("cc -shared -fPIC", "nvtx_tool.c", &tools);
    let lines = profiler_output(&program, Some(&tool));
    let range =
        |name: &str, depth| [format!("begin {name} depth {depth}"), format!("end depth {depth}")];
    let mut expected = vec!["domain NCCL".to_owned()];
    for name in [
        "ncclGetUniqueId",
        "ncclCommInitRank",
        "ncclGroupStart",
        "ncclAllReduce",
        "ncclGroupEnd",
        "ncclAllReduce",
        "ncclCommDestroy",
    ] {
        expected.extend(range(name, 0));
    }
    assert_eq!(lines, expected);
    assert_eq!(profiler_output(&program, None), [""; 0]);
    // A library that does not exist, and one without the function, have the effect of no profiler.
    assert_eq!(profiler_output(&program, Some(Path::new("/nowhere/tool.so"))), [""; 0]);
    assert_eq!(profiler_output(&program, Some(Path::new("libm.so.6"))), [""; 0]);
}
