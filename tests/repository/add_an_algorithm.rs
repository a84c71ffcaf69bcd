//! `docs/add-an-algorithm.md` shows the example as it is, and the example does what the page says.

use std::process::Command;

use crate::cargo_build;

const EXAMPLE: &str = include_str!("../../examples/add_an_algorithm.rs");
const PAGE: &str = include_str!("../../docs/add-an-algorithm.md");

#[test]
fn the_page_shows_the_example() {
    let (_, rest) = PAGE.split_once("```rust\n").expect("the page has a block of code");
    let (code, _) = rest.split_once("```").expect("the block ends");
    assert_eq!(code, EXAMPLE, "copy examples/add_an_algorithm.rs into docs/add-an-algorithm.md");
    assert!(EXAMPLE.lines().count() < 60, "the example has less than 60 lines");
}

#[test]
fn the_example_proves_draws_simulates_and_runs() {
    let directory = tempfile::tempdir().expect("a temporary folder can be made");
    let output = Command::new(cargo_build::example("add_an_algorithm"))
        .env("TMPDIR", directory.path())
        .output()
        .expect("the example runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("rank 0 gets finish (((0 1) 2) 3) of in0"), "{printed}");
    let expected =
        printed.lines().find_map(|line| line.strip_prefix("expected: ")?.strip_suffix(" us"));
    let expected: f64 = expected.expect("it prints the cost").parse().expect("a number");
    assert!(expected > 0.0);
    let picture =
        std::fs::read_to_string(directory.path().join("line.svg")).expect("it writes a picture");
    // One box for each of the seven steps.
    assert!(picture.starts_with("<svg") && picture.contains("rank 3"), "{picture}");
}
