//! Builds the C library and the command, for tests that use them as their users do.

use std::path::PathBuf;
use std::process::Command;

/// Builds the workspace in the profile of this test and returns the path of the output `file`.
pub(crate) fn built(file: &str) -> PathBuf {
    build(&[]).join(file)
}

/// Builds an example in the profile of this test and returns its path.
#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn example(name: &str) -> PathBuf {
    build(&["--example", name]).join("examples").join(name)
}

/// Builds the whole workspace, so that its crates keep the features of all other builds. Returns
/// the folder of the profile.
fn build(arguments: &[&str]) -> PathBuf {
    // target/<profile>/deps/<this test>
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a test lies in a profile's folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace"]).args(arguments);
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile lies in the target folder"));
    let name = profile.file_name().expect("a profile's folder has a name");
    cargo.arg("--profile").arg(if name == "debug" { "dev".as_ref() } else { name });
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    assert!(status.success(), "the workspace is not built");
    profile.to_path_buf()
}
