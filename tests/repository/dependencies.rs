//! Each crate imports only the crates that ARCHITECTURE.md allows.

use std::process::Command;

/// Each crate, and the crates of the workspace that its library may import.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("maypole-algorithms", &[]),
    ("maypole-control", &["maypole-algorithms"]),
    ("maypole-verbs", &[]),
    ("maypole-transport", &["maypole-verbs"]),
    ("maypole-reduce", &["maypole-algorithms"]),
    ("maypole-cuda", &["maypole-algorithms"]),
    (
        "maypole",
        &[
            "maypole-algorithms",
            "maypole-control",
            "maypole-transport",
            "maypole-reduce",
            "maypole-cuda",
        ],
    ),
    ("maypole-ffi-names", &[]),
    ("maypole-ffi", &["maypole", "maypole-ffi-names"]),
    ("maypole-bench", &["maypole", "maypole-algorithms"]),
    ("maypole-fake-verbs", &["maypole-verbs"]),
];

#[test]
fn crates_import_only_what_is_allowed() {
    for (package, allowed) in ALLOWED {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--edges", "normal", "--depth", "1", "--prefix", "none"])
            .args(["--package", package])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.starts_with(package), "{text}");
        let names = text.lines().skip(1).filter_map(|l| l.split(' ').next());
        let bad: Vec<_> =
            names.filter(|n| n.starts_with("maypole") && !allowed.contains(n)).collect();
        assert!(bad.is_empty(), "{package} imports {bad:?}");
    }
}
