//! Programs built against what `scripts/install` installs: by pkg-config, by CMake, with the static
//! library, and after the installation was moved.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs a command and returns what it printed; panics if it failed.
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

fn with_watchdog(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "50"]).arg(program);
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Installs, then moves the folder: no file in it may depend on its path.
fn install(folder: &TempDir) -> PathBuf {
    let (first, moved) = (folder.path().join("first"), folder.path().join("moved"));
    run(Command::new(root().join("scripts/install")).arg(&first));
    std::fs::rename(&first, &moved).expect("a folder moves");
    moved
}

#[test]
fn programs_build_against_an_installation() {
    let folder = TempDir::new().expect("a temporary folder");
    let prefix = install(&folder);
    let lib = prefix.join("lib");
    for (link, target) in [("libnccl.so", "libnccl.so.2"), ("libnccl.so.2", "libnccl.so.2.32.3")] {
        let found = std::fs::read_link(lib.join(link)).expect("a link");
        assert_eq!(found, Path::new(target));
    }
    for file in ["lib/libnccl_static.a", "include/nccl_device.h", "bin/maypole", "bin/ncclras"] {
        assert!(prefix.join(file).is_file(), "{file}");
    }
    run(with_watchdog(&prefix.join("bin/maypole")).arg("env"));

    let client = root().join("tests/abi/client");
    let pkg_config = |options: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", lib.join("pkgconfig")).args(options).arg("nccl");
        let words = run(&mut command);
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    if is_installed("pkg-config") {
        assert_eq!(pkg_config(&["--modversion"]), ["2.32.3"]);
        for (compiler, source) in [("cc", "one.c"), ("c++", "two.cc")] {
            let program = folder.path().join("by-pkg-config");
            let flags = pkg_config(&["--cflags", "--libs"]);
            run(Command::new(compiler)
                .arg(client.join(source))
                .arg("-o")
                .arg(&program)
                .args(flags));
            run(with_watchdog(&program).env("LD_LIBRARY_PATH", &lib));
        }
    } else {
        eprintln!("skipped: pkg-config is not installed");
    }
    // The static library, also with a function that the program defines itself.
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
        run(&mut with_watchdog(&program));
    }
    if is_installed("cmake") {
        let build = folder.path().join("build");
        let path = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
        run(Command::new("cmake").arg("-S").arg(&client).arg("-B").arg(&build).arg(path));
        run(Command::new("cmake").arg("--build").arg(&build));
        for program in ["shared_c", "shared_cc", "static_c", "own_c"] {
            run(&mut with_watchdog(&build.join(program)));
        }
    } else {
        eprintln!("skipped: cmake is not installed");
    }
}

/// The tarball of `scripts/release` has all files, and a program builds against it.
#[test]
fn programs_build_against_a_released_tarball() {
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
    run(with_watchdog(&prefix.join("bin/maypole")).arg("env"));
    if !is_installed("pkg-config") {
        eprintln!("skipped: pkg-config is not installed");
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
    run(with_watchdog(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
}

/// A program that opens NCCL by its name gets Maypole if Maypole is preloaded.
#[test]
fn a_preloaded_library_is_opened_by_its_soname() {
    let folder = TempDir::new().expect("a temporary folder");
    let prefix = install(&folder);
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
    // The file has another name: the soname decides.
    let other = folder.path().join("other.so");
    symlink(prefix.join("lib/libnccl.so.2.32.3"), &other).expect("a link");
    let path = run(with_watchdog(&program).env("LD_PRELOAD", &other));
    assert_eq!(path.trim(), other.to_str().expect("a path"));
}
