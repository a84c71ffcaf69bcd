//! Code, comments and prose keep to 100 columns.

use std::path::Path;
use std::process::Command;

const MOST_COLUMNS: usize = 100;

/// Files whose lines are made by a program or copied from a source that must not be changed.
const GENERATED: [&str; 5] = [
    "docs/algorithms.md",
    "docs/environment.md",
    "ffi/exports.txt",
    "bench/results/",
    "verbs/src/sys.rs",
];

/// Endings of the files that are checked.
const CHECKED: [&str; 9] = ["rs", "md", "cu", "cuh", "cpp", "hpp", "c", "h", "py"];

#[test]
fn lines_keep_to_the_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = Command::new("git").args(["ls-files"]).current_dir(root).output();
    let Ok(list) = list else {
        eprintln!("skipped: git is missing, so that the files of the repository are not known");
        return;
    };
    let list = String::from_utf8(list.stdout).expect("names of files are text");
    let mut long = Vec::new();
    for file in list.lines() {
        let ending = file.rsplit('.').next().unwrap_or_default();
        if !CHECKED.contains(&ending) || GENERATED.iter().any(|name| file.starts_with(name)) {
            continue;
        }
        // A file that was removed and not yet committed.
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let table = ending == "md" && line.starts_with('|');
            if line.chars().count() > MOST_COLUMNS && !line.contains("http") && !table {
                long.push(format!("{file}:{}: {} columns", number + 1, line.chars().count()));
            }
        }
    }
    assert!(long.is_empty(), "{} lines are too long:\n{}", long.len(), long.join("\n"));
}
