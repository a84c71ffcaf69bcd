//! What `scripts/install` lays out, used as clients use it: by pkg-config, by CMake, statically, and after the tree was moved.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs to the end, with a watchdog, and returns what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn timed(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "50"]).arg(program);
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn found(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Installs, then moves the tree: nothing in it may depend on where it was made.
fn installed(folder: &TempDir) -> PathBuf {
    let (first, moved) = (folder.path().join("first"), folder.path().join("moved"));
    run(Command::new(root().join("scripts/install")).arg(&first));
    std::fs::rename(&first, &moved).expect("a folder moves");
    moved
}

#[test]
fn the_installed_tree_serves_programs() {
    let folder = TempDir::new().expect("a temporary folder");
    let prefix = installed(&folder);
    let lib = prefix.join("lib");
    for (link, target) in [("libnccl.so", "libnccl.so.2"), ("libnccl.so.2", "libnccl.so.2.32.3")] {
        let found = std::fs::read_link(lib.join(link)).expect("a link");
        assert_eq!(found, Path::new(target));
    }
    for file in
        ["lib/libnccl_static.a", "include/nccl_device.h", "bin/maypole", "bin/all_reduce_perf"]
    {
        assert!(prefix.join(file).is_file(), "{file}");
    }
    run(timed(&prefix.join("bin/maypole")).arg("env"));

    let client = root().join("tests/abi/client");
    let pkg_config = |options: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).args(options).arg("nccl");
        let words = run(&mut command);
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if found("pkg-config") {
        assert_eq!(pkg_config(&["--modversion"]), ["2.32.3"]);
        for (compiler, source) in [("cc", "one.c"), ("c++", "two.cc")] {
            let program = folder.path().join("by-pkg-config");
            let flags = pkg_config(&["--cflags", "--libs"]);
            run(Command::new(compiler)
                .arg(client.join(source))
                .arg("-o")
                .arg(&program)
                .args(flags));
            run(timed(&program).env("LD_LIBRARY_PATH", &lib));
        }
    } else {
        eprintln!("pkg-config is not here: programs were not built by it");
    }
    // The static library, with a function that the program defines itself.
    for source in ["one.c", "own.c"] {
        let program = folder.path().join("static");
        let mut command = Command::new("cc");
        command
            .arg(client.join(source))
            .arg("-I")
            .arg(prefix.join("include"))
            .arg("-o")
            .arg(&program);
        run(command.arg(lib.join("libnccl_static.a")).args([
            "-lgcc_s",
            "-lpthread",
            "-lm",
            "-ldl",
        ]));
        let needed = run(Command::new("readelf").arg("-d").arg(&program));
        assert!(!needed.contains("libnccl"), "{needed}");
        run(&mut timed(&program));
    }
    if found("cmake") {
        let build = folder.path().join("build");
        let path = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
        run(Command::new("cmake").arg("-S").arg(&client).arg("-B").arg(&build).arg(path));
        run(Command::new("cmake").arg("--build").arg(&build));
        for program in ["shared_c", "shared_cc", "static_c", "own_c"] {
            run(&mut timed(&build.join(program)));
        }
    } else {
        eprintln!("cmake is not here: programs were not built by it");
    }
}

/// The tarball of `scripts/release`: what is in it, and a program built against it where it was unpacked.
#[test]
fn the_released_tarball_serves_programs() {
    let folder = TempDir::new().expect("a temporary folder");
    let printed = run(Command::new(root().join("scripts/release")).arg(folder.path()));
    let tarball = Path::new(printed.trim());
    let name = tarball.file_name().and_then(|name| name.to_str()).expect("a name");
    let name = name.strip_suffix(".tar.gz").expect("a tarball");
    let list = run(Command::new("tar").arg("-tzf").arg(tarball));
    assert!(list.lines().all(|entry| entry.starts_with(&format!("{name}/"))), "{list}");
    for file in [
        "LICENSE",
        "README.md",
        "bin/all_reduce_perf",
        "bin/maypole",
        "include/maypole.h",
        "include/nccl.h",
        "include/nccl_device.h",
        "lib/libnccl.so",
        "lib/libnccl.so.2",
        "lib/libnccl.so.2.32.3",
        "lib/libnccl_static.a",
        "lib/pkgconfig/nccl.pc",
    ] {
        assert!(list.lines().any(|entry| entry == format!("{name}/{file}")), "{file}: {list}");
    }
    run(Command::new("tar").arg("-xzf").arg(tarball).arg("-C").arg(folder.path()));
    let prefix = folder.path().join(name);
    run(timed(&prefix.join("bin/maypole")).arg("env"));
    if !found("pkg-config") {
        eprintln!("pkg-config is not here: no program was built against the tarball");
        return;
    }
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let flags = run(pkg_config.args(["--cflags", "--libs", "nccl"]));
    let program = folder.path().join("one");
    run(Command::new("cc")
        .arg(root().join("tests/abi/client/one.c"))
        .arg("-o")
        .arg(&program)
        .args(flags.split_whitespace()));
    run(timed(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
}

/// Programs that are linked with NCCL, or open it, get Maypole when it is preloaded or first on the path.
#[test]
fn a_preloaded_library_is_the_one_that_is_opened_by_name() {
    let folder = TempDir::new().expect("a temporary folder");
    let prefix = installed(&folder);
    let source = folder.path().join("open.c");
    let text = r#"#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
  void* library = dlopen("libnccl.so.2", RTLD_NOW);
  int version = 0;
  int (*get)(int*) = library ? (int (*)(int*))dlsym(library, "ncclGetVersion") : 0;
  Dl_info info;
  if (!get || get(&version) || version != 23203 || !dladdr((void*)get, &info)) return 1;
  puts(info.dli_fname);
  return 0;
}
"#;
    std::fs::write(&source, text).expect("a file in a new folder");
    let program = folder.path().join("open");
    run(Command::new("cc").arg(&source).arg("-o").arg(&program).arg("-ldl"));
    // Another name: what counts is the soname.
    let other = folder.path().join("other.so");
    symlink(prefix.join("lib/libnccl.so.2.32.3"), &other).expect("a link");
    let path = run(timed(&program).env("LD_PRELOAD", &other));
    assert_eq!(path.trim(), other.to_str().expect("a path"));
}
