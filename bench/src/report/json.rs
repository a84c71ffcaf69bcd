//! -J: the results as JSON, with the keys of nccl-tests' file (version 2), and keys of our own for our own columns. Of the environment
//! only variables of NCCL and Maypole are in it: the rest is nobody's business.
//!
//! The file is whole at any moment: it is written when the run begins and again after each table.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::PathBuf;

use super::{Measured, NCCL_VERSION, Participant, Row, Summary, table};
use crate::json::quote;
use crate::options::{Options, Step};
use crate::status::Failure;

/// The file.
pub(crate) struct Json<'a> {
    path: PathBuf,
    options: &'a Options,
    participants: &'a [Participant],
    start: String,
}

impl<'a> Json<'a> {
    /// The file that the options name, or, if there is one, the first free name with a number; None if none is wanted.
    ///
    /// # Errors
    /// A path where no file can be made.
    pub(crate) fn create(
        options: &'a Options,
        participants: &'a [Participant],
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
        let json = Self { path, options, participants, start: table::now() };
        json.write(&[], None, None)?;
        Ok(Some(json))
    }

    /// What is printed above the table.
    pub(crate) fn announcement(&self) -> String {
        format!("# Writing JSON output to {}\n", self.path.display())
    }

    /// Writes the file anew.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn write(
        &self,
        rows: &[Row],
        summary: Option<&Summary>,
        error: Option<&str>,
    ) -> Result<(), Failure> {
        let text = self.text(rows, summary, error);
        let mut part = self.path.clone().into_os_string();
        part.push(".part");
        // Whoever ends this process meanwhile leaves the file as it was.
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &self.path))
            .map_err(|error| Failure::system(format!("-J {}: {error}", self.path.display())))
    }

    fn text(&self, rows: &[Row], summary: Option<&Summary>, error: Option<&str>) -> String {
        let ours = |name: &str| {
            // The exception is between a launcher and its processes.
            (name.starts_with("NCCL_") || name.starts_with("MAYPOLE_"))
                && name != "MAYPOLE_BENCH_PLACE"
        };
        let variables = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        let variables =
            variables.filter(|(name, _)| ours(name)).map(|(n, v)| quote(&format!("{n}={v}")));
        let args = std::env::args_os().map(|word| quote(&word.to_string_lossy()));
        let mut file = Object::default();
        file.number("version", 2)
            .text("start_time", &self.start)
            .list("args", args)
            .list("env", variables)
            .number("nccl_version", NCCL_VERSION)
            .raw("config", &self.config())
            .list("results", rows.iter().map(|row| self.row(row)));
        if let Some(summary) = summary {
            let mut wrong = Object::default();
            wrong.number("count", summary.wrong).truth("okay", summary.wrong == 0);
            let mut bandwidth = Object::default();
            bandwidth.float("bandwidth", summary.bandwidth());
            match summary.fast(self.options) {
                Some(fast) => bandwidth.truth("okay", fast),
                None => bandwidth.text("okay", "unchecked"),
            };
            file.raw("out_of_bounds", &wrong.end()).raw("average_bus_bandwidth", &bandwidth.end());
        }
        file.list("errors", error.into_iter().map(quote));
        file.text("end_time", &table::now());
        file.end() + "\n"
    }

    fn config(&self) -> String {
        let options = self.options;
        let mut config = Object::default();
        config
            .number("nthreads", options.threads)
            .number("ngpus", options.gpus)
            .number("minimum_bytes", options.min_bytes)
            .number("maximum_bytes", options.max_bytes);
        match options.step {
            Step::Bytes(bytes) => config.number("step_bytes", bytes),
            Step::Factor(factor) => config.number("step_factor", factor),
        };
        config
            .number("warmup_iters", options.warmup)
            .number("iterations", options.iterations)
            .number("aggregated_iterations", options.calls)
            .number("validation", options.checks)
            .number("graph", 0)
            .truth("blocking_collectives", options.blocking > 0)
            .truth("per_iter_timing", options.per_iteration)
            .truth("parallel_init", options.parallel_init)
            .list("devices", self.participants.iter().enumerate().map(device));
        config.end()
    }

    fn row(&self, row: &Row) -> String {
        let mut object = Object::default();
        object
            .number("size", row.size)
            .number("count", row.count)
            .text("type", row.dtype.name())
            .text("redop", row.op.map_or("none", maypole_algorithms::RedOp::name))
            .text("root", &row.root.map_or(-1, i64::from).to_string());
        for (name, measured) in [("out_of_place", &row.out_of_place), ("in_place", &row.in_place)] {
            match measured {
                Some(measured) => object.raw(name, &self.placement(measured)),
                None => object.raw(name, "null"),
            };
            if let Some(times) = measured.as_ref().and_then(iterations) {
                object.raw(&format!("{name}_per_iter"), &times);
            }
        }
        if let Some(roof) = row.roof {
            object.float("roof", roof * 1e6);
        }
        object
            .number("actual_iterations", self.options.iterations)
            .text("experiment_name", self.options.operation.name());
        object.end()
    }

    fn placement(&self, measured: &Measured) -> String {
        let mut object = Object::default();
        if self.options.cpu_time {
            object.float("cpu_time", measured.cpu_seconds * 1e6);
        } else {
            object.float("time", measured.seconds * 1e6);
        }
        object.float("alg_bw", measured.algbw / 1e9).float("bus_bw", measured.busbw / 1e9);
        match measured.wrong {
            Some(wrong) => object.number("nwrong", wrong),
            None => object.raw("nwrong", "null"),
        };
        if self.options.resources {
            object
                .float("cpu_seconds", measured.process_seconds)
                .number("peak_memory_bytes", measured.peak_bytes);
        }
        object.end()
    }
}

fn device((rank, participant): (usize, &Participant)) -> String {
    let Participant { group, pid, host, device } = participant;
    let mut object = Object::default();
    object
        .number("rank", rank)
        .number("group", group)
        .number("pid", pid)
        .text("hostname", host)
        .number("device", device)
        .text("device_hex", "host memory")
        .text("device_info", "CPU");
    object.end()
}

fn iterations(measured: &Measured) -> Option<String> {
    let times = measured.iterations.as_ref()?;
    let mut object = Object::default();
    object
        .float("min_us", times.min() * 1e6)
        .float("max_us", times.max() * 1e6)
        .float("avg_us", times.mean() * 1e6)
        .float("p50_us", times.percentile(50) * 1e6)
        .float("p95_us", times.percentile(95) * 1e6)
        .float("p99_us", times.percentile(99) * 1e6)
        .float("stdev_us", times.deviation() * 1e6)
        .float("cv_pct", times.variation())
        .list("times_us", times.all.iter().map(|seconds| format!("{:.3}", seconds * 1e6)));
    Some(object.end())
}

/// An object that grows.
#[derive(Default)]
struct Object(String);

impl Object {
    fn raw(&mut self, name: &str, value: &str) -> &mut Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        let _ = write!(self.0, "{comma}{}:{value}", quote(name));
        self
    }

    fn number(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.raw(name, &value.to_string())
    }

    fn float(&mut self, name: &str, value: f64) -> &mut Self {
        self.raw(name, &format!("{value:.6}"))
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.raw(name, &quote(value))
    }

    /// As nccl-tests has it: a string.
    fn truth(&mut self, name: &str, value: bool) -> &mut Self {
        self.text(name, if value { "true" } else { "false" })
    }

    fn list(&mut self, name: &str, values: impl Iterator<Item = String>) -> &mut Self {
        let values: Vec<String> = values.collect();
        self.raw(name, &format!("[{}]", values.join(",")))
    }

    fn end(&self) -> String {
        format!("{{{}}}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::iterations::Iterations;

    #[test]
    fn all_is_in_the_file() {
        let measured = Measured {
            seconds: 1.5e-6,
            wrong: Some(3),
            iterations: Some(Iterations::new(&[vec![1e-6, 2e-6]], 0)),
            ..Measured::default()
        };
        let row = Row {
            size: 8,
            count: 2,
            dtype: maypole_algorithms::DType::Float32,
            op: None,
            root: Some(1),
            out_of_place: Some(measured),
            in_place: None,
            roof: Some(1e-6),
        };
        let options = Options { resources: true, ..Options::default() };
        let one = Participant { group: 0, pid: 17, host: "no\"de".to_owned(), device: 0 };
        let json = Json {
            path: PathBuf::new(),
            options: &options,
            participants: &[one],
            start: table::now(),
        };
        let mut summary = Summary::default();
        summary.add(&row);
        let text = json.text(&[row], Some(&summary), Some("broken"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["version"], 2);
        assert_eq!(value["config"]["devices"][0]["hostname"], "no\"de");
        assert_eq!(value["config"]["step_bytes"], 1 << 20);
        let result = &value["results"][0];
        assert_eq!((&result["root"], &result["in_place"]), (&Value::from("1"), &Value::Null));
        assert_eq!(result["out_of_place"]["time"], 1.5);
        assert_eq!(result["out_of_place"]["nwrong"], 3);
        assert_eq!(result["out_of_place_per_iter"]["times_us"], Value::from(vec![1.0, 2.0]));
        assert_eq!(value["out_of_bounds"]["okay"], "false");
        assert_eq!(value["average_bus_bandwidth"]["okay"], "unchecked");
        assert_eq!(value["errors"][0], "broken");
    }
}
