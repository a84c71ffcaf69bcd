//! The table as nccl-tests prints it, so that what reads its output reads ours.

use std::fmt::Write as _;

use maypole_algorithms::{DType, RedOp};

use crate::options::{Options, Step};

/// One of the two placements' columns of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Seconds per call.
    pub(crate) seconds: f64,
    /// Bytes per second, by the size of the operation.
    pub(crate) algbw: f64,
    /// The same times the bus factor.
    pub(crate) busbw: f64,
    /// Elements that were wrong; None if nothing was checked.
    pub(crate) wrong: Option<u64>,
}

/// Who takes part.
#[derive(Clone, Debug)]
pub(crate) struct Participant {
    /// Its process.
    pub(crate) pid: u32,
    /// Its host.
    pub(crate) host: String,
}

/// The lines above the measurements.
pub(crate) fn header(
    options: &Options,
    program: &str,
    version: u32,
    ranks: &[Participant],
) -> String {
    let mut text = String::new();
    let (step, unit) = match options.step {
        Step::Bytes(bytes) => (bytes, "bytes"),
        Step::Factor(factor) => (factor, "factor"),
    };
    let Options { min_bytes, max_bytes, warmup, iterations, calls, checks, .. } = options;
    let unaligned = u8::from(options.unaligned);
    let library = env!("CARGO_PKG_VERSION");
    let _ = write!(
        text,
        "# nccl-tests version maypole-{library} nccl-headers={version} nccl-library={version}\n\
         # Collective test starting: {program}\n\
         # nThread 1 nGpus 1 minBytes {min_bytes} maxBytes {max_bytes} step: {step}({unit}) warmup iters: {warmup} \
         iters: {iterations} agg iters: {calls} validation: {checks} graph: 0 unalign: {unaligned}\n\
         #\n\
         # Using devices\n"
    );
    for (rank, Participant { pid, host }) in ranks.iter().enumerate() {
        let _ = writeln!(
            text,
            "#  Rank {rank:2} Group  0 Pid {pid:6} on {host:>10} device  0 [host memory] CPU"
        );
    }
    let side = |time, algbw, busbw, wrong| format!("{time:>7}  {algbw:>6}  {busbw:>6}  {wrong:>6}");
    let names = side("time", "algbw", "busbw", "#wrong");
    let units = side("(us)", "(GB/s)", "(GB/s)", "");
    let left = |size, count, dtype, op, root| {
        format!("# {size:>10}  {count:>12}  {dtype:>8}  {op:>6}  {root:>6}")
    };
    let _ = write!(
        text,
        "#\n\
         {}           out-of-place                       in-place          \n\
         {}  {names}  {names} \n\
         {}  {units}  {units} \n",
        left("", "", "", "", ""),
        left("size", "count", "type", "redop", "root"),
        left("(B)", "(elements)", "", "", ""),
    );
    text
}

/// The first part of a line: what is measured.
pub(crate) fn preamble(
    bytes: usize,
    count: usize,
    dtype: DType,
    op: Option<RedOp>,
    root: Option<u32>,
) -> String {
    let op = op.map_or("none", RedOp::name);
    let root = root.map_or(-1, i64::from);
    format!("{bytes:12}  {count:12}  {:>8}  {op:>6}  {root:6}", dtype.name())
}

/// The four columns of a placement.
pub(crate) fn columns(measured: &Measured) -> String {
    let time = fixed(measured.seconds * 1e6, 7);
    let [algbw, busbw] = [measured.algbw, measured.busbw].map(|bw| fixed(bw / 1e9, 6));
    let wrong = measured.wrong.map_or("N/A".to_owned(), |wrong| general(wrong as f64));
    format!("  {time}  {algbw}  {busbw}  {wrong:>6}")
}

/// The lines below the measurements.
pub(crate) fn footer(program: &str, failures: u64, busbw: &[f64]) -> String {
    let verdict = if failures == 0 { "OK" } else { "FAILED" };
    let mean = busbw.iter().sum::<f64>() / busbw.len().max(1) as f64 / 1e9;
    format!(
        "# Out of bounds values : {failures} {verdict}\n\
         # Avg bus bandwidth    : {} \n\
         #\n\
         # Collective test concluded: {program}\n\
         #\n",
        general(mean)
    )
}

/// A number in so many columns, with as many of two decimals as fit.
fn fixed(value: f64, width: usize) -> String {
    let digits = 1 + value.max(1.0).log10().floor() as usize;
    match digits {
        _ if value < 1.0 => format!("{value:width$.2}"),
        d if d < width - 2 => format!("{value:width$.2}"),
        d if d < width - 1 => format!("{value:width$.1}"),
        d if d < width + 1 => format!("{value:width$.0}"),
        _ => format!("{value:width$.0e}"),
    }
}

/// A number as C's %g prints it: six significant digits, no trailing zeros.
fn general(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // The exponent after rounding to six digits.
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("Rust writes an exponent");
    let exponent: i32 = exponent.parse().expect("Rust writes an integer");
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..6).contains(&exponent) {
        trim(&format!("{value:.*}", (5 - exponent) as usize))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Operation;

    #[test]
    fn a_line_is_that_of_nccl_tests() {
        let measured =
            |seconds, wrong| Measured { seconds, algbw: 12.345e9, busbw: 18.5175e9, wrong };
        let line = preamble(1 << 20, 1 << 18, DType::Float32, Some(RedOp::Sum), None)
            + &columns(&measured(84.94e-6, Some(0)))
            + &columns(&measured(12345.6e-6, None));
        let golden = "     1048576        262144     float     sum      -1    \
                      84.94   12.35   18.52       0  12345.6   12.35   18.52     N/A";
        assert_eq!(line, golden);
    }

    #[test]
    fn the_header_stands_over_the_columns() {
        let options = Options {
            operation: Operation::named("all_reduce").unwrap(),
            step: Step::Factor(2),
            ..Options::default()
        };
        let ranks = [Participant { pid: 17, host: "node".to_owned() }];
        let header = header(&options, "all_reduce_perf", 23203, &ranks);
        let lines: Vec<&str> = header.lines().collect();
        assert_eq!(
            lines[2..],
            [
                "# nThread 1 nGpus 1 minBytes 33554432 maxBytes 33554432 step: 2(factor) warmup iters: 1 iters: 20 \
                 agg iters: 1 validation: 1 graph: 0 unalign: 0",
                "#",
                "# Using devices",
                "#  Rank  0 Group  0 Pid     17 on       node device  0 [host memory] CPU",
                "#",
                "#                                                              out-of-place                       in-place          ",
                "#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong ",
                "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)         ",
            ]
        );
    }

    #[test]
    fn numbers_keep_their_width() {
        assert_eq!(fixed(0.0, 7), "   0.00");
        assert_eq!(fixed(0.999, 7), "   1.00");
        assert_eq!(fixed(9.0, 6), "  9.00");
        assert_eq!(fixed(999.0, 6), "999.00");
        assert_eq!(fixed(1000.0, 6), "1000.0");
        assert_eq!(fixed(123_456.0, 6), "123456");
        assert_eq!(fixed(1_234_567.0, 7), "1234567");
        assert_eq!(fixed(12_345_678.0, 7), "    1e7");
    }

    #[test]
    fn general_numbers_are_those_of_c() {
        let cases = [
            (3.0, "3"),
            (1e6, "1e+06"),
            (123_456.0, "123456"),
            (0.5, "0.5"),
            (12.345_678, "12.3457"),
        ];
        for (value, text) in cases {
            assert_eq!(general(value), text);
        }
        assert_eq!(general(999_999.6), "1e+06");
        assert_eq!(general(0.000_012_3), "1.23e-05");
    }

    #[test]
    fn the_footer_tells_failure() {
        assert!(
            footer("x", 0, &[1e9, 3e9])
                .contains("# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 2 \n")
        );
        assert!(footer("x", 3, &[]).starts_with("# Out of bounds values : 3 FAILED\n"));
    }
}
