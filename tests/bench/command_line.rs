//! Runs the `maypole` command as a user does: exit statuses, error texts, the table, `doctor`, `ps`
//! and `env`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use maypole::config;

fn maypole() -> Command {
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    // Every run has a watchdog: if it hangs, it is killed, and its ranks with it.
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]);
    command.arg(PATH.get_or_init(|| crate::cargo_build::built("maypole")));
    command
}

fn run(arguments: &str) -> Output {
    maypole().args(arguments.split_whitespace()).output().expect("the command runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_status(output: &Output, status: i32) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{}\n{errors}", text(output));
}

#[test]
fn every_type_and_operation_is_right_among_three_ranks() {
    let output = run("bench all_reduce -np 3 -b 0 -e 100K -f 50 -n 2 -d all -o all");
    assert_status(&output, 0);
    let text = text(&output);
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    // Sizes of 0, 8, 400 and 20000 bytes.
    assert_eq!(lines.len(), 12 * 6 * 4);
    for line in lines {
        assert_eq!(line.len(), 13, "{line:?}");
        assert_eq!((line[8], line[12]), ("0", "0"), "{line:?}");
    }
    assert!(text.contains("# Out of bounds values : 0 OK\n"));
}

#[test]
fn other_collectives_and_misaligned_buffers_are_right() {
    for collective in ["all_gather", "reduce_scatter", "broadcast -r all"] {
        let options = "-np 3 -b 1K -e 300K -f 17 -n 2 -u 1 -c 2";
        assert_status(&run(&format!("bench {collective} {options}")), 0);
    }
}

#[test]
fn one_rank_is_measured_too() {
    assert_status(&run("bench all_reduce -np 1 -b 8 -e 8 -o avg -d int8"), 0);
}

#[test]
fn a_wrong_value_is_found_and_ends_in_status_7() {
    let mut command = maypole();
    command.args("bench all_reduce -np 2 -b 8 -e 64K -f 8 -n 1".split_whitespace());
    let output = command.env("MAYPOLE_BENCH_CORRUPT", "1").output().expect("the command runs");
    assert_status(&output, 7);
    // One wrong element for each of five sizes, two placements and two ranks.
    assert!(text(&output).contains("# Out of bounds values : 20 FAILED\n"), "{}", text(&output));
}

#[test]
fn errors_of_the_command_line_are_one_line() {
    for (line, status, part) in [
        ("bench all_reduce -G 1", 5, "-G 1: there are no graphs"),
        ("bench all_reduce -np 4 -D 1", 5, "-D 1: kernels that communicate need a GPU"),
        ("bench all_reduce --nonsense", 6, "'--nonsense' is not an option"),
        ("bench all_reduce -np 3 -n x", 6, "-n \"x\": "),
        ("bench all_reduce -np x", 6, "-np \"x\": "),
        ("bench all_reduce --proc x", 6, "--proc \"x\": "),
        ("compare all_reduce -np x", 6, "-np \"x\": "),
        ("bench broadcast -np 3 -r 3 -b 8 -e 8", 6, "-r 3: no such rank among 3"),
        ("bench bisection", 6, "'bisection' is not a collective"),
        ("verify all_reduce --algorithm nonsense", 6, "no such schedule"),
        ("dance", 6, "'dance' is not a command"),
    ] {
        let output = run(line);
        assert_status(&output, status);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains(part) && errors.lines().count() == 1, "{line}: {errors}");
    }
}

#[test]
fn proofs_are_made_and_schedules_printed() {
    let output = run("verify --all --ranks 2..6");
    assert_status(&output, 0);
    assert!(text(&output).contains("proved: "));
    let output = run("verify all_reduce --ranks 3 --algorithm ring --print");
    assert_status(&output, 0);
    assert!(text(&output).contains("rank 2 lane 0\n"), "{}", text(&output));
}

#[test]
fn completions_are_printed_for_a_shell() {
    let output = run("completions bash");
    assert_status(&output, 0);
    assert!(text(&output).contains("complete -F _maypole"), "{}", text(&output));
}

#[test]
fn settings_are_shown_with_their_source() {
    let output = maypole().arg("env").env("NCCL_ALGO", "ring").output().expect("the command runs");
    assert_status(&output, 0);
    assert!(
        text(&output)
            .lines()
            .any(|l| l.starts_with("NCCL_ALGO ") && l.contains("environment  ring"))
    );
}

/// The logger looks up settings itself, so what reads them must not log.
#[test]
fn settings_that_cannot_be_read_are_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    for level in ["VERSION", "WARN", "INFO"] {
        let mut command = maypole();
        command.args("bench all_reduce -b 8 -e 8 -n 1".split_whitespace());
        command.env("NCCL_CONF_FILE", folder.path()).env("NCCL_DEBUG", level);
        let output = command.output().expect("the command runs");
        assert_status(&output, 0);
        let said = text(&output).contains("cannot be read and is ignored");
        assert_eq!(said, level != "VERSION", "{}", text(&output));
    }
}

#[test]
fn no_rank_survives_a_killed_launcher() {
    let endless = Endless::start();
    kill("-INT", endless.bench);
    let ranks = endless.ranks.clone();
    endless.launcher.wait_with_output().expect("the launcher ends");
    wait_for(|| ranks.iter().all(|rank| !Path::new(&format!("/proc/{rank}/exe")).exists()));
}

#[test]
fn a_killed_rank_is_named_and_the_others_end() {
    let endless = Endless::start();
    kill("-KILL", endless.ranks[1]);
    let output = endless.launcher.wait_with_output().expect("the launcher ends");
    assert_status(&output, 137);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("maypole: rank 1 was ended by signal 9"), "{errors}");
}

#[test]
fn doctor_finds_a_limit_that_the_test_lowers() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 200; exec \"$@\"", "sh"]);
    let maypole = maypole();
    let output = command.arg(maypole.get_program()).args(maypole.get_args()).arg("doctor").output();
    let output = output.expect("the command runs");
    assert_status(&output, 1);
    let text = text(&output);
    assert!(text.contains("HURT  descriptors    200 at once"), "{text}");
    assert!(text.contains("change: ulimit -n "), "{text}");
    let other = run("doctor --json");
    // The test does not know what this machine has, but the status must fit the findings.
    let findings: serde_json::Value = serde_json::from_slice(&other.stdout).expect("JSON");
    let findings = findings.as_array().expect("a list");
    let hurts = findings.iter().any(|finding| finding["verdict"] == "hurts");
    assert_status(&other, i32::from(hurts));
}

#[test]
fn topo_writes_a_file_that_describes_the_same_machine() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a text").to_owned();
    let (file, picture, again) = (path("a.xml"), path("a.svg"), path("b.xml"));
    let first = run(&format!("topo --xml {file} --svg {picture}"));
    assert_status(&first, 0);
    assert!(text(&first).contains("NUMA node"), "{}", text(&first));
    let read = |path: &str| std::fs::read_to_string(path).expect("a file");
    assert!(read(&picture).starts_with("<svg ") && read(&picture).ends_with("</svg>\n"));
    assert_status(&run(&format!("topo --from {file} --xml {again}")), 0);
    assert_eq!(read(&file), read(&again));
    // A file of RCCL is refused by its name.
    std::fs::write(&file, "<system version=\"2\"/>").expect("a file");
    let refused = run(&format!("topo --from {file}"));
    assert_status(&refused, 6);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.contains("RCCL") && errors.contains("a.xml"), "{errors}");
}

#[test]
fn ps_shows_which_rank_waits_and_which_is_stopped() {
    let mut endless = Endless::start();
    let [waiting, stopped] = [endless.ranks[0], endless.ranks[1]];
    let is_shown = || {
        let lists = text(&run("ps"));
        let rank = lists.lines().find(|line| line.contains(&format!(" pid {waiting} ")));
        let rank = rank.is_some_and(|line| {
            line.contains("  rank 0 ")
                && line.contains("all_reduce of 2 float sum, waits ")
                && line.ends_with(" s for rank 1")
        });
        rank && lists.lines().any(|line| {
            line.starts_with(&format!("pid {stopped} ")) && line.contains(" is stopped")
        })
    };
    // Before the measured calls a rank waits for the launcher, and ps shows no call then. If the
    // rank was stopped there, it is continued and stopped again.
    wait_for(|| {
        kill("-STOP", stopped);
        let waits = (0..20).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            is_shown()
        });
        if !waits {
            kill("-CONT", stopped);
            std::thread::sleep(Duration::from_millis(300));
        }
        waits
    });
    let json: serde_json::Value = serde_json::from_slice(&run("ps --json").stdout).expect("JSON");
    let mut processes = json.as_array().expect("a list").iter();
    assert!(processes.any(|process| process["pid"] == stopped), "{json}");
    kill("-INT", endless.bench);
    endless.launcher.wait().expect("the launcher ends");
    wait_for(|| !text(&run("ps")).contains(&format!("pid {waiting} ")));
}

/// A benchmark of two ranks that does not end by itself.
pub(crate) struct Endless {
    pub(crate) launcher: Child,
    pub(crate) bench: u32,
    pub(crate) ranks: Vec<u32>,
    /// It must stay open: rank 0 ends if it cannot print.
    _out: BufReader<ChildStdout>,
}

impl Endless {
    fn start() -> Self {
        Self::with_environment(&[])
    }

    pub(crate) fn with_environment(variables: &[(&str, &str)]) -> Self {
        let mut command = maypole();
        command
            .envs(variables.iter().copied())
            .args("bench all_reduce -np 2 -b 8 -e 8 -n 1000000000".split_whitespace());
        let mut launcher =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // The header is printed when the ranks are connected.
        let mut out = BufReader::new(launcher.stdout.take().expect("it is piped"));
        let mut text = String::new();
        while !text.contains("(elements)") {
            assert_ne!(out.read_line(&mut text).expect("it is text"), 0, "ended early: {text}");
        }
        // `timeout` starts maypole, which starts the ranks in their order.
        let bench = children(launcher.id())[0];
        let ranks = children(bench);
        assert_eq!(ranks.len(), 2);
        Self { launcher, bench, ranks, _out: out }
    }
}

pub(crate) fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

pub(crate) fn wait_for(what: impl Fn() -> bool) {
    let watchdog = Instant::now() + Duration::from_secs(50);
    while !what() {
        assert!(Instant::now() < watchdog, "the expected state is not reached");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A file may set every variable of the table.
#[test]
fn env_shows_what_files_and_the_environment_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("settings");
    let lines = config::table().map(|row| format!("{}=from-the-file # why\n", row.name));
    std::fs::write(&file, lines.collect::<String>() + "NCCL_IB_MERGE_NICS=0\n").expect("a file");
    let mut command = maypole();
    command.arg("env").env_clear().env("PATH", "/usr/bin:/bin").env("NCCL_CONF_FILE", &file);
    let output =
        command.env("NCCL_ALGO", "ring").env("NCCL_NO_SUCH", "1").output().expect("it runs");
    assert_status(&output, 0);
    let text = text(&output);
    let mut lines = text.lines();
    for row in config::table() {
        let line = lines.next().unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        let (source, value) = match row.name {
            "NCCL_ALGO" => ("environment", "ring"),
            _ => (file.to_str().expect("a path of UTF-8"), "from-the-file"),
        };
        assert_eq!(words[..3], [row.name, source, value], "{line}");
        assert!(line.ends_with(&format!("(default: {})", row.default)), "{line}");
    }
    let rest: String = lines.collect();
    let (idle, malformed) =
        rest.split_once("not understood:").expect("values that are not understood");
    assert!(idle.contains("set, but without effect:"), "{rest}");
    assert!(idle.contains("0: it controls a part of InfiniBand"), "{rest}");
    assert!(idle.contains("1: neither NCCL 2.32 nor this library is known to read it"), "{rest}");
    assert!(!idle.contains("NCCL_ALGO") && !idle.contains("NCCL_CONF_FILE"), "{rest}");
    assert!(
        malformed.contains("MAYPOLE_SPIN is \"from-the-file\", which is not understood"),
        "{rest}"
    );
}
