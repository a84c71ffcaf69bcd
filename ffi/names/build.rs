//! Writes a function for each exported name that `maypole-ffi` defines as a weak symbol.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

/// The name that `maypole-ffi` defines as a Rust function.
const STRONG: &str = "ncclResetDebugInitInternal";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../exports.txt");
    let exports = fs::read_to_string("../exports.txt").expect("the list of exported names");
    let mut source = String::new();
    for name in exports.lines().filter(|name| name.starts_with("nccl") && *name != STRONG) {
        let function = format!("extern \"C\" fn {name}() {{ unreachable() }}");
        let _ = writeln!(source, "#[unsafe(no_mangle)]\n{function}");
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(folder.join("names.rs"), source).expect("the folder of the build is writable");
}
