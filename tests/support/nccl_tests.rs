//! Parses the output of nccl-tests' programs. It is written from their documented form alone: every
//! line is split by its columns, and a line that does not fit is refused.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::cargo_build;

/// The names of all programs.
pub(crate) const PROGRAMS: [&str; 11] = [
    "all_reduce_perf",
    "all_gather_perf",
    "broadcast_perf",
    "reduce_scatter_perf",
    "reduce_perf",
    "alltoall_perf",
    "alltoallv_perf",
    "scatter_perf",
    "gather_perf",
    "sendrecv_perf",
    "hypercube_perf",
];

/// The output of a program.
#[derive(Debug)]
pub(crate) struct PrintedTable {
    /// The parameters of the run, such as `nThread` and `iters`, with their values.
    pub(crate) parameters: Vec<(String, String)>,
    /// The group and the process of each rank. (Their devices are in `devices`.)
    pub(crate) ranks: Vec<(u32, u32)>,
    /// The device of each rank.
    pub(crate) devices: Vec<u32>,
    pub(crate) rows: Vec<PrintedRow>,
    /// The number of out of bounds values.
    pub(crate) wrong: u64,
    /// The average bus bandwidth.
    pub(crate) average: f64,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct PrintedRow {
    pub(crate) size: u64,
    pub(crate) count: u64,
    pub(crate) dtype: String,
    pub(crate) redop: String,
    pub(crate) root: i64,
    pub(crate) out_of_place: Option<PrintedPlacement>,
    pub(crate) in_place: Option<PrintedPlacement>,
    /// The columns after the standard ones.
    pub(crate) rest: Vec<String>,
}

/// The four columns of one placement.
#[derive(Debug)]
pub(crate) struct PrintedPlacement {
    pub(crate) time: f64,
    pub(crate) algbw: f64,
    pub(crate) busbw: f64,
    /// None for N/A.
    pub(crate) wrong: Option<f64>,
}

/// The program of that name, killed if it hangs.
pub(crate) fn program(name: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| cargo_build::built(""));
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(folder.join(name));
    // Variables of the developer's environment must not change the test.
    for variable in
        ["NCCL_TESTS_SPLIT", "NCCL_TESTS_SPLIT_MASK", "NCCL_TESTS_MIN_BW", "NCCL_TESTS_DEVICE"]
    {
        command.env_remove(variable);
    }
    command
}

/// Runs a program with arguments and variables.
pub(crate) fn run(name: &str, arguments: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = program(name);
    command.args(arguments.split_whitespace()).envs(variables.iter().copied());
    command.output().expect("the program runs")
}

/// Runs a program that must end with `status`, and parses its output.
pub(crate) fn table(
    name: &str,
    arguments: &str,
    variables: &[(&str, &str)],
    status: i32,
) -> PrintedTable {
    let output = run(name, arguments, variables);
    let text = String::from_utf8(output.stdout).expect("the table is text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{name} {arguments}\n{text}\n{errors}");
    assert_eq!(errors, "", "{name} {arguments}");
    parse(name, &text)
}

/// Widths of the columns before the two placements, with two blanks between columns.
const LEFT: [usize; 5] = [12, 12, 8, 6, 6];
/// Widths of the columns of one placement.
const PLACEMENT: [usize; 4] = [7, 6, 6, 6];

/// Parses a whole output.
pub(crate) fn parse(name: &str, text: &str) -> PrintedTable {
    assert!(text.ends_with('\n'), "the last line ends with a newline");
    let mut lines = text.lines().peekable();
    let mut next = || lines.next().unwrap_or_else(|| panic!("{name} ended early:\n{text}"));
    let version = next();
    let words: Vec<&str> = version.split(' ').collect();
    assert_eq!(words[..3], ["#", "nccl-tests", "version"], "{version}");
    assert!(
        words[4].starts_with("nccl-headers=2") && words[5].starts_with("nccl-library=2"),
        "{version}"
    );
    assert_eq!(next(), format!("# Collective test starting: {name}"));
    let parameters = parameters(next());
    let mut line = next();
    while line != "#" {
        let known =
            ["# Blocking Enabled: ", "# Parallel Init Enabled: ", "# Per-Iteration Report: "];
        assert!(known.iter().any(|known| line.starts_with(known)), "{line}");
        line = next();
    }
    assert_eq!(next(), "# Using devices");
    let (mut ranks, mut devices) = (Vec::new(), Vec::new());
    line = next();
    while line != "#" {
        let (group, pid, device) = rank(line, ranks.len());
        ranks.push((group, pid));
        devices.push(device);
        line = next();
    }
    titles(next(), next(), next());
    let mut rows = Vec::new();
    line = next();
    while !line.starts_with("# Out of bounds values : ") {
        if !line.starts_with("# nRanks ") && !line.starts_with("#  Rank ") {
            rows.push(row(line));
        }
        line = next();
    }
    let words: Vec<&str> = line.split(' ').collect();
    let wrong = words[6].parse().unwrap_or_else(|_| panic!("{line}"));
    assert_eq!(words[7..], [if wrong == 0 { "OK" } else { "FAILED" }], "{line}");
    line = next();
    let average =
        line.strip_prefix("# Avg bus bandwidth    : ").unwrap_or_else(|| panic!("{line}"));
    let (average, verdict) = average.split_once(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(["", "OK", "FAILED"].contains(&verdict), "{line}");
    assert_eq!(next(), "#");
    assert_eq!(next(), format!("# Collective test concluded: {name}"));
    line = next();
    if let Some(memory) = line.strip_prefix("# GPU memory usage     : ") {
        let parts: Vec<&str> = memory.split(" | ").collect();
        let names = ["Initialization ", "User-Allocated ", "Collective ", "Total  "];
        assert!(parts.len() == 4, "{line}");
        assert!(parts.iter().zip(names).all(|(part, name)| part.starts_with(name)), "{line}");
        line = next();
    }
    assert_eq!(line, "#");
    // The text of the last error, if there was one.
    assert_eq!(next(), "");
    assert_eq!(lines.next(), None, "no line follows");
    let average = average.parse().unwrap_or_else(|_| panic!("average {average}"));
    PrintedTable { parameters, ranks, devices, rows, wrong, average }
}

/// `# nThread 1 nGpus 1 ... step: 2(factor) warmup iters: 1 iters: 20 ...`
fn parameters(line: &str) -> Vec<(String, String)> {
    let line = line.strip_prefix("# ").unwrap_or_else(|| panic!("{line}"));
    let names = [
        "nThread ",
        "nGpus ",
        "minBytes ",
        "maxBytes ",
        "step: ",
        "warmup iters: ",
        "iters: ",
        "agg iters: ",
        "validation: ",
        "graph: ",
    ];
    let mut rest = line;
    names
        .iter()
        .map(|name| {
            let after = rest.strip_prefix(name).unwrap_or_else(|| panic!("{name} in {line}"));
            let (value, after) = after.split_once(' ').unwrap_or((after, ""));
            rest = after;
            (name.trim_end_matches([' ', ':']).to_owned(), value.to_owned())
        })
        .collect()
}

/// `#  Rank  0 Group  0 Pid  16805 on       host device  0 [0000:01:00] name`: the group, the
/// process and the device.
fn rank(line: &str, expected: usize) -> (u32, u32, u32) {
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!([words[0], words[1], words[3], words[5]], ["#", "Rank", "Group", "Pid"], "{line}");
    assert_eq!([words[7], words[9]], ["on", "device"], "{line}");
    assert_eq!(words[2], expected.to_string(), "{line}");
    let address = words[11].strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parts: Vec<&str> = address.unwrap_or_else(|| panic!("{line}")).split(':').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [4, 2, 2], "{line}");
    assert!(parts.iter().all(|part| u32::from_str_radix(part, 16).is_ok()), "{line}");
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{line}"));
    (number(words[4]), number(words[6]), number(words[10]))
}

/// Checks the three lines of titles: each word ends where its column ends.
fn titles(placements: &str, names: &str, units: &str) {
    assert!(placements.starts_with('#'));
    let (first, second) = (placements.find("out-of-place"), placements.find("in-place"));
    assert!(first.is_some() && first < second, "{placements}");
    let time = if names.contains("cputime") { "cputime" } else { "time" };
    let side = [time, "algbw", "busbw", "#wrong"];
    let more =
        if names.contains("i_min") { 4 } else { 0 } + if names.contains("p50") { 2 } else { 0 };
    let expected = ["size", "count", "type", "redop", "root"].into_iter().chain(side);
    let mut end = 0;
    for (title, width) in expected.zip(LEFT.into_iter().chain(PLACEMENT)) {
        end += width + if end == 0 { 0 } else { 2 };
        assert!(names[..end].ends_with(title), "'{title}' does not end in column {end}: {names}");
    }
    end += more * 9;
    for (title, width) in side.into_iter().zip(PLACEMENT) {
        end += width + 2;
        assert!(names[..end].ends_with(title), "'{title}' does not end in column {end}: {names}");
    }
    let units: Vec<&str> = units.split_whitespace().collect();
    assert_eq!(units[..6], ["#", "(B)", "(elements)", "(us)", "(GB/s)", "(GB/s)"]);
}

fn row(line: &str) -> PrintedRow {
    let mut at = 0;
    let mut take = |width: usize| {
        let column = line.get(at..at + width).unwrap_or_else(|| panic!("too short: {line}"));
        at += width;
        let gap = line.get(at..at + 2).unwrap_or("  ");
        assert_eq!(gap, "  ", "column {at}: {line}");
        at = (at + 2).min(line.len());
        let word = column.trim_start();
        assert!(!word.contains(' '), "a column of {width} at {at}: {line}");
        word.to_owned()
    };
    let left = LEFT.map(&mut take);
    // Only the name of the reduction may be blank.
    assert!([0, 1, 2, 4].iter().all(|&which| !left[which].is_empty()), "{line}");
    let mut side = || {
        let [time, algbw, busbw, wrong] = PLACEMENT.map(&mut take);
        let number =
            |word: &str| word.parse::<f64>().unwrap_or_else(|_| panic!("{word} in {line}"));
        let wrong = (wrong != "N/A").then(|| number(&wrong));
        if time == "N/A" {
            assert_eq!((algbw.as_str(), busbw.as_str(), wrong), ("N/A", "N/A", None), "{line}");
            return None;
        }
        Some(PrintedPlacement {
            time: number(&time),
            algbw: number(&algbw),
            busbw: number(&busbw),
            wrong,
        })
    };
    let (out_of_place, in_place) = (side(), side());
    let [size, count, dtype, redop, root] = left;
    let rest = line[at..].split_whitespace().map(str::to_owned).collect();
    PrintedRow {
        size: size.parse().unwrap_or_else(|_| panic!("{line}")),
        count: count.parse().unwrap_or_else(|_| panic!("{line}")),
        dtype,
        redop,
        root: root.parse().unwrap_or_else(|_| panic!("{line}")),
        out_of_place,
        in_place,
        rest,
    }
}
