//! `-J`: writes the results as JSON, with the keys of nccl-tests' file (version 3), and with keys
//! of our own for our own columns. Of the environment it contains only variables of NCCL and
//! Maypole, since others may be private.
//!
//! The file is complete at any moment: it is written when the run begins and again after each
//! table.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::iterations::Iterations;
use super::{
    DEVICE_ADDRESS, DEVICE_NAME, ListedRank, Measurement, NCCL_VERSION, TableRow, TableSummary,
    table,
};
use crate::options::{Options, SizeStep};
use crate::status::Failure;

/// The file that is written.
pub(crate) struct ResultFile<'a> {
    path: PathBuf,
    options: &'a Options,
    ranks: &'a [ListedRank],
    start_time: String,
}

impl<'a> ResultFile<'a> {
    /// Creates the file that the options name. If it exists, the first free name with a number is
    /// used. None if the options name no file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(crate) fn create(
        options: &'a Options,
        ranks: &'a [ListedRank],
    ) -> Result<Option<Self>, Failure> {
        let Some(wanted) = &options.json else { return Ok(None) };
        let mut path = wanted.clone();
        let mut number = 0;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    path = format!("{}.{number}", wanted.display()).into();
                    number += 1;
                }
                Err(error) => {
                    return Err(Failure::system(format!("-J {}: {error}", path.display())));
                }
            }
        }
        let file = Self { path, options, ranks, start_time: table::now() };
        file.write(&[], None, None)?;
        Ok(Some(file))
    }

    /// The line above the table that names the file.
    pub(crate) fn announcement(&self) -> String {
        format!("# Writing JSON output to {}\n", self.path.display())
    }

    /// Writes the file anew.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn write(
        &self,
        rows: &[TableRow],
        summary: Option<&TableSummary>,
        error: Option<&str>,
    ) -> Result<(), Failure> {
        let text = serde_json::to_string(&self.content(rows, summary, error));
        let text = text.map_err(|error| Failure::internal(error.to_string()))? + "\n";
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        // If this process is killed meanwhile, the file stays as it was.
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &self.path))
            .map_err(|error| Failure::system(format!("-J {}: {error}", self.path.display())))
    }

    fn content(
        &self,
        rows: &[TableRow],
        summary: Option<&TableSummary>,
        error: Option<&str>,
    ) -> Content<'_> {
        let is_published = |name: &str| {
            // The exception is only between a launcher and its processes.
            (name.starts_with("NCCL_") || name.starts_with("MAYPOLE_"))
                && name != "MAYPOLE_BENCH_PLACE"
        };
        let variables = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        let variables = variables.filter(|(name, _)| is_published(name));
        let args = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        Content {
            version: 3,
            start_time: &self.start_time,
            args: args.collect(),
            env: variables.map(|(name, value)| format!("{name}={value}")).collect(),
            nccl_version: NCCL_VERSION,
            config: config(self.options, self.ranks),
            results: rows.iter().map(|row| result(self.options, row)).collect(),
            out_of_bounds: summary.map(|summary| OutOfBounds {
                count: summary.wrong,
                okay: truth(summary.wrong == 0),
            }),
            average_bus_bandwidth: summary.map(|summary| AverageBandwidth {
                bandwidth: Decimal(summary.bandwidth()),
                okay: summary.is_fast_enough(self.options).map_or("unchecked", truth),
            }),
            // Without an error nccl-tests writes the empty text of the last error.
            errors: [error.unwrap_or_default().to_owned()],
            end_time: table::now(),
        }
    }
}

/// The content of the file. The order of the fields is that of the file.
#[derive(Serialize)]
struct Content<'a> {
    version: u32,
    start_time: &'a str,
    args: Vec<String>,
    env: Vec<String>,
    nccl_version: u32,
    config: Config<'a>,
    results: Vec<ResultRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_bounds: Option<OutOfBounds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_bus_bandwidth: Option<AverageBandwidth>,
    errors: [String; 1],
    end_time: String,
}

#[derive(Serialize)]
struct Config<'a> {
    nthreads: u32,
    ngpus: u32,
    minimum_bytes: usize,
    maximum_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_factor: Option<usize>,
    warmup_iters: usize,
    iterations: usize,
    aggregated_iterations: usize,
    validation: usize,
    graph: u32,
    blocking_collectives: &'static str,
    per_iter_timing: &'static str,
    per_iter_skip: usize,
    parallel_init: &'static str,
    devices: Vec<Device<'a>>,
}

#[derive(Serialize)]
struct Device<'a> {
    rank: usize,
    group: u32,
    pid: u32,
    hostname: &'a str,
    device: u32,
    device_hex: &'static str,
    device_info: &'static str,
}

#[derive(Serialize)]
struct ResultRow {
    size: usize,
    count: usize,
    #[serde(rename = "type")]
    dtype: &'static str,
    redop: &'static str,
    root: String,
    out_of_place: Option<Placement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_place_per_iter: Option<IterationTimes>,
    in_place: Option<Placement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_place_per_iter: Option<IterationTimes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roof: Option<Decimal>,
    actual_iterations: usize,
    experiment_name: &'static str,
}

#[derive(Serialize)]
struct Placement {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_time: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Decimal>,
    alg_bw: Decimal,
    bus_bw: Decimal,
    nwrong: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_seconds: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct IterationTimes {
    skipped_iterations: usize,
    min_us: Decimal,
    max_us: Decimal,
    avg_us: Decimal,
    p50_us: Decimal,
    p95_us: Decimal,
    p99_us: Decimal,
    stdev_us: Decimal,
    cv_pct: Decimal,
    times_us: Vec<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_process_max_times_us: Option<Vec<Vec<Decimal>>>,
}

#[derive(Serialize)]
struct OutOfBounds {
    count: u64,
    okay: &'static str,
}

#[derive(Serialize)]
struct AverageBandwidth {
    bandwidth: Decimal,
    okay: &'static str,
}

/// A number that is written with at most six decimals.
struct Decimal(f64);

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((self.0 * 1e6).round() / 1e6)
    }
}

/// A truth value, which nccl-tests writes as a string.
fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn config<'a>(options: &Options, ranks: &'a [ListedRank]) -> Config<'a> {
    let (step_bytes, step_factor) = match options.step() {
        SizeStep::Bytes(bytes) => (Some(bytes), None),
        SizeStep::Factor(factor) => (None, Some(factor)),
    };
    let device = |(rank, listed): (usize, &'a ListedRank)| Device {
        rank,
        group: listed.group,
        pid: listed.pid,
        hostname: &listed.host,
        device: listed.device,
        device_hex: DEVICE_ADDRESS,
        device_info: DEVICE_NAME,
    };
    Config {
        nthreads: options.threads,
        ngpus: options.gpus,
        minimum_bytes: options.min_bytes,
        maximum_bytes: options.max_bytes,
        step_bytes,
        step_factor,
        warmup_iters: options.warmup,
        iterations: options.iterations,
        aggregated_iterations: options.calls,
        validation: options.checks,
        graph: 0,
        blocking_collectives: truth(options.blocking > 0),
        per_iter_timing: truth(options.per_iteration),
        per_iter_skip: options.skip,
        parallel_init: truth(options.parallel_init),
        devices: ranks.iter().enumerate().map(device).collect(),
    }
}

fn result(options: &Options, row: &TableRow) -> ResultRow {
    let placement = |measured: &Option<Measurement>| {
        measured.as_ref().map(|measured| placement(options, measured))
    };
    let per_iteration = |measured: &Option<Measurement>| {
        let times = measured.as_ref()?.iterations.as_ref();
        times.map(|times| iteration_times(times, options.skip))
    };
    ResultRow {
        size: row.size,
        count: row.count,
        dtype: row.dtype.name(),
        redop: row.reduction(),
        // As in the table.
        root: format!("{:6}", row.root.map_or(-1, i64::from)),
        out_of_place: placement(&row.out_of_place),
        out_of_place_per_iter: per_iteration(&row.out_of_place),
        in_place: placement(&row.in_place),
        in_place_per_iter: per_iteration(&row.in_place),
        roof: row.roof.map(|roof| Decimal(roof * 1e6)),
        actual_iterations: options.iterations,
        // nccl-tests leaves it empty, too.
        experiment_name: "",
    }
}

fn placement(options: &Options, measured: &Measurement) -> Placement {
    let time = Decimal(measured.seconds * 1e6);
    let cpu_time = Decimal(measured.cpu_seconds * 1e6);
    Placement {
        cpu_time: options.cpu_time.then_some(cpu_time),
        time: (!options.cpu_time).then_some(time),
        alg_bw: Decimal(measured.algbw / 1e9),
        bus_bw: Decimal(measured.busbw / 1e9),
        nwrong: measured.wrong,
        cpu_seconds: options.resources.then_some(Decimal(measured.process_seconds)),
        peak_memory_bytes: options.resources.then_some(measured.peak_bytes),
    }
}

fn iteration_times(times: &Iterations, skipped: usize) -> IterationTimes {
    let microseconds = |seconds: f64| Decimal(seconds * 1e6);
    // Three decimals, since there may be many of them.
    let rounded = |seconds: &f64| Decimal((seconds * 1e9).round() / 1e3);
    let all = |times: &Vec<f64>| times.iter().map(rounded).collect::<Vec<_>>();
    let several = times.processes.len() > 1;
    IterationTimes {
        skipped_iterations: skipped.min(times.all.len()),
        min_us: microseconds(times.min()),
        max_us: microseconds(times.max()),
        avg_us: microseconds(times.mean()),
        p50_us: microseconds(times.median()),
        p95_us: microseconds(times.percentile(95)),
        p99_us: microseconds(times.percentile(99)),
        stdev_us: microseconds(times.deviation()),
        cv_pct: Decimal(times.variation()),
        times_us: all(&times.all),
        per_process_max_times_us: several.then(|| times.processes.iter().map(all).collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn all_results_are_in_the_file_in_the_order_of_nccl_tests() {
        let measured = Measurement {
            seconds: 1.5e-6,
            wrong: Some(3),
            iterations: Some(Iterations::new(&[vec![1e-6, 2e-6], vec![1e-6, 1e-6]], 1, 1)),
            ..Measurement::default()
        };
        let row = TableRow {
            size: 8,
            count: 2,
            dtype: maypole_algorithms::DType::Float32,
            operation: crate::operation::Operation::Broadcast,
            op: None,
            root: Some(1),
            out_of_place: Some(measured),
            in_place: None,
            roof: Some(1e-6),
        };
        let options = Options { resources: true, skip: 1, ..Options::default() };
        let rank = ListedRank { group: 0, pid: 17, host: "no\"de".to_owned(), device: 0 };
        let file = ResultFile {
            path: PathBuf::new(),
            options: &options,
            ranks: &[rank],
            start_time: table::now(),
        };
        let mut summary = TableSummary::default();
        summary.add(&row);
        let rows = [row];
        let content = file.content(&rows, Some(&summary), Some("broken"));
        let text = serde_json::to_string(&content).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], 3);
        assert_eq!(value["config"]["devices"][0]["hostname"], "no\"de");
        assert_eq!(value["config"]["step_bytes"], 1 << 20);
        let result = &value["results"][0];
        assert_eq!((&result["root"], &result["in_place"]), (&Value::from("     1"), &Value::Null));
        assert_eq!((&result["experiment_name"], &result["redop"]), (&"".into(), &"none".into()));
        assert_eq!(value["config"]["per_iter_skip"], 1);
        assert_eq!(result["out_of_place"]["time"], 1.5);
        assert_eq!(result["out_of_place"]["nwrong"], 3);
        assert_eq!(result["out_of_place_per_iter"]["times_us"], Value::from(vec![1.0, 2.0]));
        let times = &result["out_of_place_per_iter"];
        assert_eq!((&times["skipped_iterations"], &times["min_us"]), (&1.into(), &2.0.into()));
        let processes = vec![vec![1.0, 2.0], vec![1.0, 1.0]];
        assert_eq!(times["per_process_max_times_us"], Value::from(processes));
        let fine = file.content(&rows, None, None);
        assert_eq!(serde_json::to_value(&fine).unwrap()["errors"], Value::from(vec![""]));
        assert_eq!(value["out_of_bounds"]["okay"], "false");
        assert_eq!(value["average_bus_bandwidth"]["okay"], "unchecked");
        assert_eq!(value["errors"][0], "broken");
        let keys = [
            "version",
            "start_time",
            "args",
            "env",
            "nccl_version",
            "config",
            "nthreads",
            "ngpus",
            "minimum_bytes",
            "step_bytes",
            "per_iter_timing",
            "per_iter_skip",
            "parallel_init",
            "devices",
            "results",
            "type",
            "redop",
            "root",
            "out_of_place",
            "time",
            "alg_bw",
            "bus_bw",
            "nwrong",
            "cpu_seconds",
            "peak_memory_bytes",
            "out_of_place_per_iter",
            "skipped_iterations",
            "min_us",
            "times_us",
            "per_process_max_times_us",
            "in_place",
            "roof",
            "actual_iterations",
            "experiment_name",
            "out_of_bounds",
            "average_bus_bandwidth",
            "errors",
            "end_time",
        ];
        let mut rest = &text[..];
        for key in keys {
            let found = rest.find(&format!("\"{key}\":"));
            rest = &rest[found.unwrap_or_else(|| panic!("{key} is not in order: {text}"))..];
        }
    }
}
