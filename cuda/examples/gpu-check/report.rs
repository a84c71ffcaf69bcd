//! A check and its outcome, which is reported as a row of the table and an entry of the JSON file.

use crate::gpu::Settings;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The result of a check, unless it could not be made.
pub(crate) type Checked = Result<Outcome, Box<dyn Error>>;

/// One check, which runs in a process of its own.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// The time limit, after which the process is killed and the check has failed.
    pub(crate) seconds: u64,
    /// Of the process.
    pub(crate) environment: &'static [(&'static str, &'static str)],
    pub(crate) run: fn(&Settings) -> Checked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// Not on the simulated GPU.
    NeedsGpu,
    /// Something is not there that the check is about.
    Skipped,
}

impl Verdict {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Passed, "ok"),
        (Self::Failed, "FAILED"),
        (Self::NeedsGpu, "needs a GPU"),
        (Self::Skipped, "not run"),
    ];

    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(result, _)| *result == self).expect("all are listed").1
    }
}

/// The outcome of a check.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    result: Verdict,
    detail: String,
    figures: Map<String, Value>,
}

impl Outcome {
    fn new(result: Verdict, detail: impl ToString) -> Self {
        Self { result, detail: detail.to_string(), figures: Map::new() }
    }

    /// All is right; `detail` says what was.
    pub(crate) fn passed(detail: impl ToString) -> Self {
        Self::new(Verdict::Passed, detail)
    }

    pub(crate) fn failed(detail: impl ToString) -> Self {
        Self::new(Verdict::Failed, detail)
    }

    /// The simulated GPU cannot show this, whatever came out; `detail` says what did.
    pub(crate) fn needs_gpu(detail: impl ToString) -> Self {
        Self::new(Verdict::NeedsGpu, detail)
    }

    pub(crate) fn skipped(detail: impl ToString) -> Self {
        Self::new(Verdict::Skipped, detail)
    }

    /// The same with other words.
    pub(crate) fn saying(self, detail: impl ToString) -> Self {
        Self { detail: detail.to_string(), ..self }
    }

    /// The same with one more line.
    pub(crate) fn and_says(mut self, line: &str) -> Self {
        self.detail = format!("{}\n{line}", self.detail);
        self
    }

    /// The same with a figure for the JSON.
    pub(crate) fn with(mut self, name: impl Into<String>, figure: impl Into<Value>) -> Self {
        self.figures.insert(name.into(), figure.into());
        self
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("result".into(), self.result.text().into());
        object.insert("detail".into(), self.detail.clone().into());
        object.insert("figures".into(), self.figures.clone().into());
        object
    }

    fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let result = value["result"].as_str()?;
        let (result, _) = Verdict::ALL.into_iter().find(|(_, text)| *text == result)?;
        let figures = value["figures"].as_object()?.clone();
        Some(Self { result, detail: value["detail"].as_str()?.to_owned(), figures })
    }
}

/// Begins the line by which the process of a check tells its outcome.
const MARK: &str = "gpu-check outcome: ";

/// Tells the outcome to the process that has started this one.
pub(crate) fn hand_over(outcome: &Outcome) {
    println!("\n{MARK}{}", Value::from(outcome.to_json()));
}

/// A line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    outcome: Outcome,
    seconds: f64,
}

impl Row {
    pub(crate) fn new(name: &'static str, outcome: Outcome, seconds: f64) -> Self {
        Self { name, outcome, seconds }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.outcome.result == Verdict::Failed
    }

    pub(crate) fn print(&self) {
        let Self { name, outcome, seconds } = self;
        let mut lines = outcome.detail.lines();
        let first = lines.next().unwrap_or_default();
        println!("{name:<22} {:<11} {seconds:>6.1} s  {first}", outcome.result.text());
        for line in lines {
            println!("{:44}{line}", "");
        }
    }
}

/// Runs a check in a process of its own, for as long as it may take and there is time `left`.
pub(crate) fn run(check: &Check, settings: &Settings, left: Duration) -> Row {
    let begin = Instant::now();
    let wanted = Duration::from_secs(check.seconds);
    let limit = wanted.min(left);
    let outcome = match left.is_zero() {
        true => Outcome::skipped("the time of all checks together is used up"),
        false => run_apart(check, settings, limit).unwrap_or_else(Outcome::failed),
    };
    // A check that had less time than it may take has not failed.
    let outcome = match begin.elapsed() >= limit && limit < wanted {
        true => Outcome { result: Verdict::Skipped, ..outcome },
        false => outcome,
    };
    Row::new(check.name, outcome, begin.elapsed().as_secs_f64())
}

fn run_apart(
    check: &Check,
    settings: &Settings,
    limit: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--one", check.name]).args(settings.arguments());
    command.envs(check.environment.iter().copied()).stdin(Stdio::null());
    let (said, how) = output(command, limit)?;
    let told = said.lines().rev().find_map(|line| line.strip_prefix(MARK));
    if let Some(outcome) = told.and_then(Outcome::from_json) {
        return Ok(outcome);
    }
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = last[last.len().saturating_sub(8)..].join("\n");
    Ok(Outcome::failed(format!("the check {how}\n{last}")))
}

/// What the command writes, on both streams, and how it ends. It is killed after `limit`, with all
/// processes that it has started.
pub(crate) fn output(
    mut command: Command,
    limit: Duration,
) -> Result<(String, String), Box<dyn Error>> {
    use std::os::unix::process::CommandExt;
    let (mut reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    drop(command); // and with it the ends to write to
    let text = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes); // what could be read counts
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let deadline = Instant::now() + limit;
    let how = loop {
        if let Some(status) = child.try_wait()? {
            break format!("ended with {status}");
        }
        if Instant::now() > deadline {
            break format!("was not done after {} s", limit.as_secs());
        }
        sleep(Duration::from_millis(10));
    };
    // SAFETY: the call takes no pointers. The group is the child's, which has not been reaped or
    // has just ended.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    child.wait()?;
    Ok((text.join().map_err(|_| "the reader of the output panicked")?, how))
}

/// The last lines of the table, and the JSON; the exit status of the program.
pub(crate) fn summary(rows: &[Row], json: Option<&Path>) -> ExitCode {
    let count = |result| rows.iter().filter(|row| row.outcome.result == result).count();
    let words = Verdict::ALL.map(|(result, text)| format!("{} {text}", count(result)));
    let failed = count(Verdict::Failed) > 0 || rows.is_empty();
    println!("{}: {}", if failed { "NOT RIGHT" } else { "nothing failed" }, words.join(", "));
    let names = |result| -> Vec<&str> {
        rows.iter().filter(|row| row.outcome.result == result).map(|row| row.name).collect()
    };
    for result in [Verdict::NeedsGpu, Verdict::Skipped] {
        if count(result) > 0 {
            println!("{}: {}", result.text(), names(result).join(" "));
        }
    }
    if let Some(path) = json {
        let entries = rows.iter().map(|row| {
            let mut entry = row.outcome.to_json();
            entry.insert("name".into(), row.name.into());
            entry.insert("seconds".into(), row.seconds.into());
            Value::from(entry)
        });
        let all = json!({ "right": !failed, "checks": entries.collect::<Vec<_>>() });
        if let Err(error) = std::fs::write(path, format!("{all:#}\n")) {
            eprintln!("gpu-check: cannot write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
