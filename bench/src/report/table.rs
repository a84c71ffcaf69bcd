//! Formats the rows of the table, as nccl-tests prints them: in parts, since each part is printed
//! as soon as it is measured.

use std::fmt::Write as _;

use super::number::{fixed, general};
use super::{Measurement, TableRow};
use crate::operation::work::RankWork;
use crate::options::Options;

/// The first part of a row: what is measured.
pub(crate) fn preamble(row: &TableRow) -> String {
    let op = row.reduction();
    let root = row.root.map_or(-1, i64::from);
    let TableRow { size, count, dtype, .. } = row;
    format!("{size:12}  {count:12}  {:>8}  {op:>6}  {root:6}", dtype.name())
}

/// The columns of one placement.
pub(crate) fn columns(options: &Options, measured: &Measurement) -> String {
    let seconds = if options.cpu_time { measured.cpu_seconds } else { measured.seconds };
    let time = fixed(seconds * 1e6, 7);
    let [algbw, busbw] = [measured.algbw, measured.busbw].map(|bw| fixed(bw / 1e9, 6));
    let wrong = measured.wrong.map_or("N/A".to_owned(), |wrong| general(wrong as f64));
    let mut text = format!("  {time}  {algbw}  {busbw}  {wrong:>6}");
    if let Some(iterations) = &measured.iterations {
        let mut all = Vec::new();
        if options.per_iteration {
            let us = [iterations.min(), iterations.max(), iterations.percentile(99)];
            all.extend(us.map(|seconds| seconds * 1e6));
            all.push(iterations.variation());
        }
        if options.percentiles {
            all.extend([50, 99].map(|percent| iterations.percentile(percent) * 1e6));
        }
        all.iter().for_each(|&number| {
            let _ = write!(text, "  {}", fixed(number, 7));
        });
    }
    text
}

/// The last part of a row.
pub(crate) fn ending(options: &Options, row: &TableRow) -> String {
    let mut text = String::new();
    if let (Some(measured), Some(roof)) = (&row.out_of_place, row.roof) {
        let share = 100.0 * roof / measured.seconds.max(1e-9);
        let _ = write!(text, "  {}  {}", fixed(roof * 1e6, 7), fixed(share, 6));
    }
    if let (Some(measured), true) = (&row.out_of_place, options.resources) {
        let megabytes = measured.peak_bytes as f64 / f64::from(1 << 20);
        let _ = write!(text, "  {}  {}", fixed(measured.process_seconds, 7), fixed(megabytes, 7));
    }
    if options.timestamps {
        let _ = write!(text, "{:>21}", now());
    }
    text.push('\n');
    text
}

/// The lines of NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY: what each rank sends and receives, and its
/// bandwidth.
pub(crate) fn traffic(row: &TableRow, work: &RankWork) -> String {
    let (Some(traffic), Some(measured)) = (&work.traffic, &row.out_of_place) else {
        return String::new();
    };
    let mut text = String::new();
    let element = work.dtype.size();
    for rank in 0..work.nranks {
        let [sent, received] = [traffic.sent(rank), traffic.received(rank)].map(|n| n * element);
        let algbw = sent.max(received) as f64 / measured.seconds.max(1e-9) / 1e9;
        let busbw = algbw * work.operation.bus_factor(work.nranks);
        let _ = writeln!(
            text,
            "#  Rank {rank:2} sends {sent:12} receives {received:12} algbw {} busbw {}",
            fixed(algbw, 6),
            fixed(busbw, 6)
        );
    }
    text
}

/// The local time of day, such as `2026-11-25 03:40:00`.
pub(crate) fn now() -> String {
    // SAFETY: time accepts a null pointer. localtime_r writes to `time`, for which all zeros is
    // valid.
    let time = unsafe {
        let seconds = libc::time(std::ptr::null_mut());
        let mut time = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut time);
        time
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        time.tm_year + 1900,
        time.tm_mon + 1,
        time.tm_mday,
        time.tm_hour,
        time.tm_min,
        time.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::operation::Operation;
    use crate::report::iterations::Iterations;

    fn measured(seconds: f64, wrong: Option<u64>) -> Measurement {
        let iterations = Some(Iterations::new(&[vec![1e-6, 3e-6]], 1, 0));
        Measurement {
            seconds,
            cpu_seconds: seconds / 2.0,
            algbw: 12.345e9,
            busbw: 18.5175e9,
            wrong,
            process_seconds: 1.5,
            peak_bytes: 32 << 20,
            iterations,
        }
    }

    fn row() -> TableRow {
        TableRow {
            size: 1 << 20,
            count: 1 << 18,
            dtype: DType::Float32,
            operation: Operation::AllReduce,
            op: Some(RedOp::Sum),
            root: None,
            out_of_place: Some(measured(84.94e-6, Some(0))),
            in_place: Some(measured(12345.6e-6, None)),
            roof: None,
        }
    }

    fn line(options: &Options, row: &TableRow) -> String {
        preamble(row)
            + &columns(options, row.out_of_place.as_ref().unwrap())
            + &columns(options, row.in_place.as_ref().unwrap())
            + &ending(options, row)
    }

    #[test]
    fn a_row_has_the_form_of_nccl_tests() {
        let mut row = row();
        for measured in [&mut row.out_of_place, &mut row.in_place] {
            measured.as_mut().unwrap().iterations = None;
        }
        let golden = "     1048576        262144     float     sum      -1    \
                      84.94   12.35   18.52       0  12345.6   12.35   18.52     N/A\n";
        assert_eq!(line(&Options::default(), &row), golden);
    }

    #[test]
    fn the_word_for_the_reduction_is_that_of_nccl_tests() {
        for (operation, op, word) in [
            (Operation::Broadcast, None, "none"),
            (Operation::SendRecv, Some(RedOp::Sum), "sum"),
            (Operation::Hypercube, None, ""),
        ] {
            let text = preamble(&TableRow { operation, op, ..row() });
            assert_eq!(text[36..44].trim(), word, "{text}");
            assert_eq!(text.len(), 52);
        }
    }

    #[test]
    fn a_time_without_iterations_is_infinite() {
        let text = columns(&Options::default(), &measured(f64::INFINITY, Some(0)));
        assert_eq!(text, "      inf   12.35   18.52       0");
    }

    #[test]
    fn more_columns_follow_the_standard_ones() {
        let options = Options {
            percentiles: true,
            roof: true,
            resources: true,
            timestamps: true,
            cpu_time: true,
            ..Options::default()
        };
        let text = line(&options, &TableRow { roof: Some(42.47e-6), ..row() });
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[5..11], ["42.47", "12.35", "18.52", "0", "1.00", "3.00"]);
        assert_eq!(words[17..21], ["42.47", "50.00", "1.50", "32.00"]);
        assert_eq!((words.len(), words[21].len(), words[22].len()), (23, 10, 8));
    }
}
