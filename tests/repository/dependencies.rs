//! Who may import whom: the arrows of the README, held.

use std::process::Command;

/// A room, and the other rooms that its library may be built on.
const ARROWS: [(&str, &[&str]); 6] = [
    ("maypole-algorithms", &[]),
    ("maypole-transport", &[]),
    ("maypole-cuda", &["maypole-algorithms"]),
    ("maypole", &["maypole-algorithms", "maypole-transport", "maypole-cuda"]),
    ("maypole-ffi", &["maypole"]),
    ("maypole-bench", &["maypole", "maypole-algorithms"]),
];

#[test]
fn rooms_import_only_what_the_arrows_allow() {
    for (room, allowed) in ARROWS {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--edges", "normal", "--depth", "1", "--prefix", "none"])
            .args(["--package", room])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.starts_with(room), "{text}");
        let names = text.lines().skip(1).filter_map(|l| l.split(' ').next());
        let bad: Vec<_> =
            names.filter(|n| n.starts_with("maypole") && !allowed.contains(n)).collect();
        assert!(bad.is_empty(), "{room} imports {bad:?}");
    }
}
