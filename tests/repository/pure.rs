//! The crates of schedules and of the control plane do no I/O: they read no clock, do not sleep,
//! and use no sockets, files, processes or threads.

use std::path::{Path, PathBuf};

/// The folders of these crates.
const PURE: [&str; 2] = ["algorithms/src", "control/src"];

/// What their code must not name, outside of tests.
const FORBIDDEN: [&str; 14] = [
    "Instant",
    "SystemTime",
    "sleep",
    "std::thread",
    "std::fs",
    "std::process",
    "std::os",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "libc::",
    "unsafe {",
];

#[test]
fn schedules_and_the_control_plane_do_no_io() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut files = 0;
    for folder in PURE {
        for path in sources(&root.join(folder)) {
            files += 1;
            let text = std::fs::read_to_string(&path).expect("a source file");
            // Unit tests are at the end of a file.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(&text);
            for (number, line) in code.lines().enumerate() {
                let is_code = !line.trim_start().starts_with("//");
                for name in FORBIDDEN.iter().filter(|name| is_code && line.contains(*name)) {
                    found.push(format!("{}:{}: {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(files > 40, "only {files} files were read");
    assert!(found.is_empty(), "these are not pure:\n{}", found.join("\n"));
}

/// The source files below a folder, without those of the simulated world and of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" && name != "world" {
                files.extend(sources(&path));
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    files
}
