//! Mutants of the state machines: the simulated world must find that each of them is wrong.
//!
//! The test copies the sources of this crate, changes one place, and runs the worlds:
//! `cargo test --release -p maypole-control --test mutants -- --ignored --nocapture`.

use std::path::Path;
use std::process::Command;

/// A change of the source: the file, what is wrong, the text to change and its replacement.
type Mutant = (&'static str, &'static str, &'static str, &'static str);

const MOD: &str = "communicator/mod.rs";
const EXCHANGE: &str = "communicator/exchange.rs";
const HISTORY: &str = "communicator/history.rs";
const INQUIRY: &str = "communicator/inquiry.rs";

/// The mutants. Faults that the library once had are among them.
const MUTANTS: &[Mutant] = &[
    (
        MOD,
        "an abort is not told before the farewell",
        "        self.spread_link_failure(facts);\n        self.compare_histories(facts);",
        "        self.compare_histories(facts);",
    ),
    (
        MOD,
        "a rank that sent, left and ended is told dead",
        "            neighbour.lost_at.get_or_insert(lost_at);",
        "            self.neighbour_died(rank, facts);\n            let _ = lost_at;",
    ),
    (
        "time.rs",
        "a duration underflows after a stop or a jump",
        "self.0.saturating_sub(earlier.0)",
        "self.0.checked_sub(earlier.0).expect(\"time\")",
    ),
    (
        "long_wait.rs",
        "a wait that was stopped for long underflows",
        "            while self.next_report <= waited {",
        "            for _ in 0..1 {",
    ),
    (
        "world/run.rs",
        "a verdict overtakes data that has arrived",
        "if !std::mem::replace(looked_again, true) {",
        "if false {",
    ),
    (
        MOD,
        "a verdict is not sent to the parent",
        "if Some(rank) != sender {\n                self.send(rank, ControlFrame::Verdict",
        "if Some(rank) != sender && rank > self.rank {\n self.send(rank, ControlFrame::Verdict",
    ),
    (
        MOD,
        "a verdict is not sent to the children",
        "if Some(rank) != sender {\n                self.send(rank, ControlFrame::Verdict",
        "if Some(rank) != sender && rank < self.rank {\n self.send(rank, ControlFrame::Verdict",
    ),
    (
        MOD,
        "a later verdict replaces the first",
        "        self.verdict.get_or_insert(verdict.clone());",
        "        self.verdict = Some(verdict.clone());",
    ),
    (
        MOD,
        "a verdict does not end an exchange",
        "        if self.exchange.take().is_some() {\n            self.outputs",
        "        if false {\n            self.outputs",
    ),
    (
        MOD,
        "a verdict does not end the waits",
        "        self.outputs.push_back(ControlOutput::Ended(verdict.clone()));",
        "",
    ),
    (
        MOD,
        "the deadline of a lost neighbour is forgotten",
        "filter_map(|neighbour| neighbour.lost_at);",
        "filter_map(|neighbour| neighbour.lost_at.filter(|_| false));",
    ),
    (
        MOD,
        "the deadline of a lost neighbour is compared the wrong way",
        "it.lost_at.is_some_and(|at| at <= now)",
        "it.lost_at.is_some_and(|at| at > now)",
    ),
    (
        MOD,
        "a broken connection is told as a death",
        "        let has_ended =\n            neighbour.has_ended",
        "        let has_ended = true\n            || neighbour.has_ended",
    ),
    (
        MOD,
        "an exchange waits for a rank that left",
        "        if self.exchange.is_some() {\n            // The exchange",
        "        if false {\n            // The exchange",
    ),
    (
        MOD,
        "calls are not compared while ranks are idle",
        "            self.compare_histories(facts);\n        }\n        if let Some(Conn",
        "        }\n        if let Some(Conn",
    ),
    (
        MOD,
        "a rank that leaves does not say so",
        "            self.send(rank, ControlFrame::Leave(point));",
        "            let _ = (rank, point);",
    ),
    (
        MOD,
        "an end of a process is not noticed",
        "ControlInput::ProcessEnded(rank) => self.process_ended(rank, facts),",
        "ControlInput::ProcessEnded(_) => {}",
    ),
    (
        MOD,
        "an end of a connection is not noticed",
        "ControlInput::Closed(rank) => self.closed(rank, facts),",
        "ControlInput::Closed(_) => {}",
    ),
    (
        EXCHANGE,
        "an exchange begins with a rank that has left",
        "self.departures.first()",
        "self.departures.get(9)",
    ),
    (
        EXCHANGE,
        "the deadline of an exchange is compared the wrong way",
        "filter(|it| it.deadline <= self.now)",
        "filter(|it| it.deadline > self.now)",
    ),
    (
        EXCHANGE,
        "exchanges are not counted",
        "        self.exchange_number = sequence.wrapping_add(1);",
        "        self.exchange_number = sequence.wrapping_add(u32::from(self.rank == 1));",
    ),
    (
        EXCHANGE,
        "the result of an exchange is not passed on",
        "            self.send(rank, ControlFrame::Down { sequence, items: items.clone() });",
        "            let _ = (rank, &items, sequence);",
    ),
    (
        HISTORY,
        "equal calls are told as different",
        "is_some_and(|hash| hash != point.hash) {\n            let fallback",
        "is_some_and(|hash| hash == point.hash) {\n            let fallback",
    ),
    (
        HISTORY,
        "different calls are not told",
        "is_some_and(|hash| hash != point.hash) {\n            let fallback",
        "is_some_and(|_| false) {\n            let fallback",
    ),
    (
        HISTORY,
        "a rank that made the same calls and left is told as different",
        "        let what = if ended > point.sequence {",
        "        let what = if ended >= point.sequence {",
    ),
    (
        HISTORY,
        "a rank does not send its calls",
        "            self.send(above, ControlFrame::History(",
        "            let _ = (above, ControlFrame::History(",
    ),
    (
        INQUIRY,
        "a rank that is waited for and has ended is not told",
        "        if state == Some(ProcessState::Ended) {",
        "        if false {",
    ),
    (
        INQUIRY,
        "an answer is waited for without end",
        "due: self.now + ANSWER_TIMEOUT",
        "due: self.now + ANSWER_TIMEOUT * 100_000",
    ),
    (
        INQUIRY,
        "a question that is answered stays open",
        "        if let Some(verdict) = Verdict::compare((rank, &own), (asked, peers_calls)) {",
        "        if let Some(verdict) = Verdict::compare((rank, &own), (asked, &own)) {",
    ),
];

#[test]
#[ignore = "compiles the crate once for each mutant"]
fn the_world_finds_every_mutant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let target = root.join("target/mutants");
    let copy = target.join("workspace");
    let mut lived = Vec::new();
    for (file, what, from, to) in MUTANTS {
        copy_sources(root, &copy);
        let path = copy.join("control/src").join(file);
        let text = std::fs::read_to_string(&path).expect("a source file");
        assert_eq!(text.matches(from).count(), 1, "{file}: {what}: the text to change");
        std::fs::write(&path, text.replace(from, to)).expect("a source file");
        let output = Command::new(env!("CARGO"))
            .args(["test", "--release", "--offline", "-p", "maypole-control", "--lib"])
            .env("MAYPOLE_WORLDS", "10000")
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(&copy)
            .output()
            .expect("cargo runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        let output_text = String::from_utf8_lossy(&output.stdout);
        assert!(output_text.contains("running "), "{what} does not compile:\n{errors}");
        if output.status.success() {
            println!("not found: {what}");
            lived.push(*what);
        } else {
            println!("found: {what}");
        }
    }
    println!("{} of {} mutants were found", MUTANTS.len() - lived.len(), MUTANTS.len());
    assert!(lived.is_empty(), "these mutants were not found: {lived:#?}");
}

/// Copies what cargo needs to test the crate alone.
fn copy_sources(root: &Path, copy: &Path) {
    let _ = std::fs::remove_dir_all(copy);
    for folder in ["control", "algorithms"] {
        copy_folder(&root.join(folder), &copy.join(folder));
    }
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    let workspace = manifest.split("[package]").next().expect("the workspace's part");
    let members = workspace.lines().map(|line| match line {
        line if line.starts_with("members") => "members = [\"algorithms\", \"control\"]",
        line if line.starts_with("default-members") => "",
        line => line,
    });
    let members: Vec<&str> = members.collect();
    std::fs::write(copy.join("Cargo.toml"), members.join("\n")).expect("the manifest");
    std::fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock")).expect("the lock file");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).expect("a file");
        }
    }
}
