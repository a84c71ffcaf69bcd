//! Mutants of the state machines: the simulated worlds, or the tests beside the code, must find
//! that each of them is wrong.
//!
//! The test copies the sources of this crate and changes them so that an environment variable
//! chooses at run time which of the faults below is there. So they are compiled once, and the
//! worlds run once for each: `cargo test --release -p maypole-control --test mutants -- --ignored
//! --nocapture`. `MAYPOLE_MUTANT_WORLDS` sets how many worlds may run until one finds the fault.

use std::path::Path;
use std::process::Command;

/// A change of the source: the file, what is wrong, the text to change, and its replacement, in
/// which MUTANT is true if the fault is chosen.
type Mutant = (&'static str, &'static str, &'static str, &'static str);

const MOD: &str = "communicator/mod.rs";
const EXCHANGE: &str = "communicator/exchange.rs";
const HISTORY: &str = "communicator/history.rs";
const INQUIRY: &str = "communicator/inquiry.rs";
const ROOT: &str = "bootstrap/root.rs";
const JOIN: &str = "bootstrap/joining.rs";

/// The mutants. Faults that the library once had are among them.
#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    (
        MOD,
        "an abort is not told before the farewell",
        "        self.spread_link_failure(facts);\n\
         \x20       self.compare_histories(facts);",
        "        if !MUTANT {\n\
         \x20           self.spread_link_failure(facts);\n\
         \x20       }\n\
         \x20       self.compare_histories(facts);",
    ),
    (
        MOD,
        "a rank that sent, left and ended is told dead",
        "            neighbour.lost_at.get_or_insert(lost_at);",
        "            neighbour.lost_at.get_or_insert(lost_at);\n\
         \x20           if MUTANT {\n\
         \x20               self.neighbour_died(rank, facts);\n\
         \x20           }",
    ),
    (
        "time.rs",
        "a duration underflows after a stop or a jump",
        "self.0.saturating_sub(earlier.0)",
        "if MUTANT { self.0.checked_sub(earlier.0).expect(\"time\") } else {\
         \x20self.0.saturating_sub(earlier.0) }",
    ),
    (
        "long_wait.rs",
        "a wait that was stopped for long underflows",
        "            while self.next_report <= waited {",
        "            let mut rounds = 0;\n\
         \x20           while if MUTANT { rounds < 1 } else { self.next_report <= waited\
         \x20} {\n\
         \x20               rounds += 1;",
    ),
    (
        MOD,
        "a death ends at once the waits for ranks that live",
        "self.end_waits_at.get_or_insert(self.now + self.timing.report);",
        "self.end_waits_at.get_or_insert(if MUTANT { self.now } else {\
         \x20self.now + self.timing.report });",
    ),
    (
        MOD,
        "a verdict is not sent to the parent",
        "            if Some(rank) != sender {\n",
        "            if Some(rank) != sender && !(MUTANT && rank < self.rank) {\n",
    ),
    (
        MOD,
        "a verdict is not sent to the children",
        "self.send(rank, ControlFrame::Verdict(verdict.clone()));",
        "if !(MUTANT && rank > self.rank) { self.send(rank,\
         \x20ControlFrame::Verdict(verdict.clone())); }",
    ),
    (
        MOD,
        "a later verdict replaces the first",
        "        self.verdict.get_or_insert(verdict.clone());",
        "        if MUTANT {\n\
         \x20           self.verdict = None;\n\
         \x20       }\n\
         \x20       self.verdict.get_or_insert(verdict.clone());",
    ),
    (
        MOD,
        "a verdict does not end an exchange",
        "        if self.exchange.take().is_some() {",
        "        if !MUTANT && self.exchange.take().is_some() {",
    ),
    (
        MOD,
        "a verdict does not end the waits",
        "        self.outputs.push_back(ControlOutput::Ended(verdict.clone()));",
        "        if !MUTANT {\
         \x20self.outputs.push_back(ControlOutput::Ended(verdict.clone())); }",
    ),
    (
        MOD,
        "the deadline of a lost neighbour is forgotten",
        "filter_map(|neighbour| neighbour.lost_at);",
        "filter_map(|neighbour| neighbour.lost_at.filter(|_| !MUTANT));",
    ),
    (
        MOD,
        "the deadline of a lost neighbour is compared the wrong way",
        "it.lost_at.is_some_and(|at| at <= now)",
        "it.lost_at.is_some_and(|at| (at <= now) != MUTANT)",
    ),
    (
        MOD,
        "a broken connection is told as a death",
        "        let has_ended =\n\
         \x20           neighbour.has_ended",
        "        let has_ended = MUTANT\n\
         \x20           || neighbour.has_ended",
    ),
    (
        MOD,
        "an exchange waits for a rank that left",
        "        if self.exchange.is_some() {\n\
         \x20           // The exchange",
        "        if !MUTANT && self.exchange.is_some() {\n\
         \x20           // The exchange",
    ),
    (
        MOD,
        "calls are not compared while ranks are idle",
        "            self.compare_histories(facts);\n\
         \x20       }\n\
         \x20       if let Some(Conn",
        "            if !MUTANT {\n\
         \x20               self.compare_histories(facts);\n\
         \x20           }\n\
         \x20       }\n\
         \x20       if let Some(Conn",
    ),
    (
        MOD,
        "a rank that leaves does not say so",
        "            self.send(rank, ControlFrame::Leave(point));",
        "            if !MUTANT {\n\
         \x20               self.send(rank, ControlFrame::Leave(point));\n\
         \x20           }",
    ),
    (
        MOD,
        "an end of a process is not noticed",
        "            ControlInput::ProcessEnded(rank) =>",
        "            ControlInput::ProcessEnded(_) if MUTANT => {}\n\
         \x20           ControlInput::ProcessEnded(rank) =>",
    ),
    (
        MOD,
        "an end of a connection is not noticed",
        "            ControlInput::Closed(rank) =>",
        "            ControlInput::Closed(_) if MUTANT => {}\n\
         \x20           ControlInput::Closed(rank) =>",
    ),
    (
        MOD,
        "a deadline counts before what has come was read",
        "            ControlInput::Tick => self.tick(now, facts),\n\
         \x20       }",
        "            ControlInput::Tick => self.tick(now, facts),\n\
         \x20       }\n\
         \x20       if MUTANT {\n\
         \x20           self.tick(now, facts);\n\
         \x20       }",
    ),
    (
        MOD,
        "the end of the waits after a death is forgotten",
        "        if self.end_waits_at.take_if(",
        "        if !MUTANT && self.end_waits_at.take_if(",
    ),
    (
        EXCHANGE,
        "an exchange begins with a rank that has left",
        "self.departures.first()",
        "self.departures.get(if MUTANT { 9 } else { 0 })",
    ),
    (
        EXCHANGE,
        "the deadline of an exchange is compared the wrong way",
        "filter(|it| it.deadline <= now)",
        "filter(|it| (it.deadline <= now) != MUTANT)",
    ),
    (
        EXCHANGE,
        "exchanges are not counted",
        "        self.exchange_number = sequence.wrapping_add(1);",
        "        self.exchange_number = sequence.wrapping_add(u32::from(!MUTANT ||\
         \x20self.rank == 1));",
    ),
    (
        EXCHANGE,
        "the result of an exchange is not passed on",
        "            self.send(rank, ControlFrame::Down { sequence, items:\
         \x20items.clone() });",
        "            if !MUTANT { self.send(rank, ControlFrame::Down { sequence,\
         \x20items: items.clone() }); }",
    ),
    (
        HISTORY,
        "equal calls are told as different",
        "is_some_and(|hash| hash != point.hash) {\n\
         \x20           let fallback",
        "is_some_and(|hash| (hash != point.hash) != MUTANT) {\n\
         \x20           let fallback",
    ),
    (
        HISTORY,
        "different calls are not told",
        "        if !waits && own.history",
        "        if !MUTANT && !waits && own.history",
    ),
    (
        HISTORY,
        "a rank that made the same calls and left is told as different",
        "        let what = if ended > point.sequence {",
        "        let what = if ended > point.sequence || MUTANT && ended ==\
         \x20point.sequence {",
    ),
    (
        HISTORY,
        "a rank does not send its calls",
        "            self.send(above, ControlFrame::History(HistoryPoint { sequence:\
         \x20ended, hash }));",
        "            if !MUTANT { self.send(above, ControlFrame::History(HistoryPoint\
         \x20{ sequence: ended, hash })); }",
    ),
    (
        INQUIRY,
        "a rank that is waited for and has ended is not told",
        "        if state == Some(ProcessState::Ended) {",
        "        if !MUTANT && state == Some(ProcessState::Ended) {",
    ),
    (
        INQUIRY,
        "an answer is waited for without end",
        "self.await_answer(purpose, ANSWER_TIMEOUT, false)",
        "self.await_answer(purpose, ANSWER_TIMEOUT * if MUTANT { 100_000 } else { 1 },\
         \x20false)",
    ),
    (
        INQUIRY,
        "the calls of another rank are taken for its own",
        "(asked, peers_calls)) {",
        "(asked, if MUTANT { &own } else { peers_calls })) {",
    ),
    (
        INQUIRY,
        "a rank that exits in order is told dead by an inquiry",
        "            if !left && !was_last {",
        "            if !MUTANT && !left && !was_last {",
    ),
    (
        ROOT,
        "a root of a shrink does not look for missing ranks",
        "                self.outputs.push_back(RootOutput::Probe(missing));",
        "                if !MUTANT {\
         \x20self.outputs.push_back(RootOutput::Probe(missing)); }",
    ),
    (
        ROOT,
        "a root of a shrink waits for a rank that is gone",
        "            self.fail_all(gone_before_it_joined(rank));",
        "            if !MUTANT { self.fail_all(gone_before_it_joined(rank)); }",
    ),
    (
        ROOT,
        "a root of a shrink waits for a rank that died",
        "        if self.next_probe.is_some() {\n\
         \x20           self.fail_all",
        "        if !MUTANT && self.next_probe.is_some() {\n\
         \x20           self.fail_all",
    ),
    (
        ROOT,
        "a root forgets its deadline",
        "        if self.give_up_at().is_some_and(|end| end <= now) {",
        "        if !MUTANT && self.give_up_at().is_some_and(|end| end <= now) {",
    ),
    (
        ROOT,
        "a root does not tell why it gives up",
        "                self.send_to_all(&ControlFrame::Verdict(verdict));",
        "                if !MUTANT {\
         \x20self.send_to_all(&ControlFrame::Verdict(verdict)); }",
    ),
    (
        ROOT,
        "a root does not tell children that come first",
        "            if let Some(connection) = self.ranks.get(&child)",
        "            if !MUTANT && let Some(connection) = self.ranks.get(&child)",
    ),
    (
        ROOT,
        "a root lets two processes be one rank",
        "            first.map(duplicate)",
        "            first.filter(|_| !MUTANT).map(duplicate)",
    ),
    (
        JOIN,
        "a rank waits for a root that is gone",
        "        if visit.root == root && !visit.appears_later {",
        "        if !MUTANT && visit.root == root && !visit.appears_later {",
    ),
    (
        JOIN,
        "a rank does not tell its roots that it has joined",
        "            self.outputs.push_back(JoinOutput::SendRoot(root,\
         \x20ControlFrame::LeaveRoot));\n\
         \x20           self",
        "            if !MUTANT { self.outputs.push_back(JoinOutput::SendRoot(root,\
         \x20ControlFrame::LeaveRoot)); }\n\
         \x20           self",
    ),
    (
        JOIN,
        "the loss of a root is not noticed",
        "            _ if self.roots.contains(&root) =>\
         \x20self.fail(JoinFailure::RootLost(root)),",
        "            _ if !MUTANT && self.roots.contains(&root) =>\
         \x20self.fail(JoinFailure::RootLost(root)),",
    ),
];

/// The file that is added to the copy: whether a fault is chosen.
const CHOICE: &str = r#"
pub(crate) fn is(number: usize) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<usize>> =
        std::sync::LazyLock::new(|| std::env::var("MAYPOLE_MUTANT").ok()?.parse().ok());
    *CHOSEN == Some(number)
}
"#;

#[test]
#[ignore = "compiles the crate once more"]
fn the_world_finds_every_mutant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let copy = root.join("target/mutants");
    copy_sources(root, &copy);
    for (number, (file, what, from, to)) in MUTANTS.iter().enumerate() {
        let path = copy.join("control/src").join(file);
        let text = std::fs::read_to_string(&path).expect("a source file");
        assert_eq!(text.matches(from).count(), 1, "{file}: {what}: the text to change");
        let to = to.replace("MUTANT", &format!("crate::mutant::is({number})"));
        let text = text.replace(from, &to).replace("pub const fn since(", "pub fn since(");
        std::fs::write(&path, text).expect("a source file");
    }
    std::fs::write(copy.join("control/src/mutant.rs"), CHOICE).expect("a source file");
    let library = copy.join("control/src/lib.rs");
    let text = std::fs::read_to_string(&library).expect("the library");
    let text = text.replace("#![forbid(unsafe_code)]", "#![forbid(unsafe_code)]\nmod mutant;");
    std::fs::write(&library, text).expect("the library");

    let worlds = std::env::var("MAYPOLE_MUTANT_WORLDS").unwrap_or_else(|_| String::from("10000"));
    let run = |mutant: Option<usize>| {
        let mut cargo = Command::new(env!("CARGO"));
        let profile = ["test", "--release", "--offline", "-p", "maypole-control"];
        cargo.args(profile).arg("--lib");
        cargo.env("CARGO_TARGET_DIR", root.join("target")).current_dir(&copy);
        cargo.env("RUST_BACKTRACE", "0").env("MAYPOLE_SHRINK", "0");
        match mutant {
            Some(number) => cargo.env("MAYPOLE_MUTANT", number.to_string()),
            None => cargo.env_remove("MAYPOLE_MUTANT"),
        };
        let most = if mutant.is_some() { worlds.as_str() } else { "1000" };
        let output = cargo.env("MAYPOLE_WORLDS", most).output().expect("cargo runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("running "), "the mutants do not compile:\n{errors}");
        (output.status.success(), text)
    };
    let (passes, text) = run(None);
    assert!(passes, "without a fault:\n{text}");
    let mut lived = Vec::new();
    for (number, (_, what, ..)) in MUTANTS.iter().enumerate() {
        let (passes, text) = run(Some(number));
        let failed = |line: &&str| line.starts_with("test ") && line.contains("FAILED");
        let by: Vec<&str> = text.lines().filter(failed).collect();
        println!("{} {what}: {by:?}", if passes { "not found:" } else { "found:" });
        lived.extend(passes.then_some(*what));
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
    let workspace = without_list(workspace, "default-members = [");
    let workspace = without_list(&workspace, "members = [");
    let members = "[workspace]\nmembers = [\"algorithms\", \"control\"]";
    let workspace = workspace.replacen("[workspace]", members, 1);
    std::fs::write(copy.join("Cargo.toml"), workspace).expect("the manifest");
    std::fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock")).expect("the lock file");
}

/// A manifest without the list that begins with this text.
fn without_list(manifest: &str, begin: &str) -> String {
    let Some((before, list)) = manifest.split_once(begin) else { return manifest.to_owned() };
    let (_, after) = list.split_once(']').expect("the end of a list");
    before.to_owned() + after
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
