//! The options of `maypole bench`: those of nccl-tests that make sense for host memory, with their letters and defaults.

use std::ffi::OsString;

use lexopt::{Arg, Parser, ValueExt};
use maypole_algorithms::{DType, RedOp};

use crate::operation::{OPERATIONS, Operation};

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The collective.
    pub(crate) operation: Operation,
    /// -np: how many ranks, each a process.
    pub(crate) nranks: u32,
    /// -b: the smallest size in bytes.
    pub(crate) min_bytes: usize,
    /// -e: the largest size in bytes.
    pub(crate) max_bytes: usize,
    /// How sizes follow one another.
    pub(crate) step: Step,
    /// -n: timed iterations.
    pub(crate) iterations: usize,
    /// -m: calls per iteration.
    pub(crate) calls: usize,
    /// -w: untimed iterations before them.
    pub(crate) warmup: usize,
    /// -c: checked calls.
    pub(crate) checks: usize,
    /// -d: element types.
    pub(crate) dtypes: Vec<DType>,
    /// -o: reductions.
    pub(crate) ops: Vec<RedOp>,
    /// -r: roots.
    pub(crate) roots: Vec<u32>,
    /// -z 1: a barrier after each call.
    pub(crate) barrier: bool,
    /// -u: buffers begin one element behind a page's start.
    pub(crate) unaligned: bool,
    /// -a: which rank's time is shown.
    pub(crate) average: Average,
    /// -T: seconds without progress after which everything is stopped; 0 for never.
    pub(crate) timeout: u64,
}

/// The way from one size to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// -i: so many bytes more.
    Bytes(usize),
    /// -f: so many times more.
    Factor(usize),
}

/// Which time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Average {
    /// That of rank 0.
    First,
    /// The mean over the ranks.
    Mean,
    /// The shortest.
    Min,
    /// The longest.
    Max,
}

/// The text of `maypole bench --help`.
pub(crate) const HELP: &str = "\
maypole bench COLLECTIVE [-np RANKS] [OPTIONS]

Runs a collective in RANKS processes on this host and prints what nccl-tests prints.
COLLECTIVE is all_reduce, all_gather, reduce_scatter or broadcast.

  -np, --ranks N          processes (1)
  -b, --minbytes SIZE     smallest size; K, M or G may follow (32M)
  -e, --maxbytes SIZE     largest size (32M)
  -i, --stepbytes SIZE    from one size to the next (1M)
  -f, --stepfactor N      a factor instead; a size of 0 is followed by 8 bytes
  -n, --iters N           timed iterations (20)
  -m, --agg_iters N       calls in an iteration (1)
  -w, --warmup_iters N    untimed iterations before them (1)
  -c, --check N           checked calls; 0 for none (1)
  -o, --op OP             sum, prod, min, max, avg, mulsum or all (sum)
  -d, --datatype TYPE     int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, f8e4m3,
                          f8e5m2 or all (float)
  -r, --root RANK         the root, or all (0)
  -z, --blocking 0|1|2    1 for a barrier after each call, outside of the measured time; 0 and 2 are the same,
                          since calls on host memory are over when they return (0)
  -u, --unalign 0|1       buffers that begin one element behind the start of a page (0)
  -a, --average 0|1|2|3   the time shown: rank 0's, the mean, the shortest, the longest (1)
  -T, --timeout SECONDS   without progress, after which all processes are stopped; 0 for never (0)
  -t 1, -g 1              accepted: one rank is one process here

Memory is the allocator's. #wrong counts, over all ranks, the elements that are not exactly as expected, the damaged
bytes around the receive buffer, and elements of the send buffer that were changed.

Environment:
  MAYPOLE_BENCH_CORRUPT=1   a self-test of the check: every rank inverts a byte of its result before it is checked,
                            so the run must report wrong values and exit with 7

Exit status: 0 all fine, 3 the library failed, 4 time-out, 6 usage, 7 wrong values, that of a process that failed, or
128 plus the number of the signal that ended it.
";

/// Options of nccl-tests that are known, to say so, but not supported.
const UNSUPPORTED: [&str; 24] = [
    "N",
    "run_cycles",
    "p",
    "parallel_init",
    "y",
    "stream_null",
    "G",
    "cudagraph",
    "C",
    "report_cputime",
    "S",
    "report_timestamps",
    "J",
    "output_file",
    "R",
    "local_register",
    "x",
    "cta_policy",
    "D",
    "device_implementation",
    "V",
    "device_cta_count",
    "M",
    "memory_report",
];

impl Options {
    /// Reads what follows `maypole bench`; None if help is asked for.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, lexopt::Error> {
        // nccl-tests has -n, mpirun has -np: the latter is a word of its own.
        let args = args.into_iter().map(|a| if a == "-np" { "--ranks".into() } else { a });
        let mut parser = Parser::from_args(args);
        let mut operation = None;
        let mut options = Self::default();
        let mut all_roots = false;
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => return Ok(None),
                Arg::Value(name) if operation.is_none() => {
                    operation = Some(named(&name.string()?)?);
                }
                Arg::Short('r') | Arg::Long("root") => {
                    let value = parser.value()?;
                    all_roots = value == "all";
                    options.roots = if all_roots { Vec::new() } else { vec![value.parse()?] };
                }
                Arg::Short(letter) => options.set(&letter.to_string(), "-", &mut parser)?,
                Arg::Long(name) => {
                    let name = name.to_owned();
                    options.set(&name, "--", &mut parser)?;
                }
                Arg::Value(_) => return Err(arg.unexpected()),
            }
        }
        options.operation = operation.ok_or("which collective? See maypole bench --help")?;
        if all_roots {
            options.roots = (0..options.nranks).collect();
        }
        options.check()?;
        Ok(Some(options))
    }

    /// Takes the value of option `name`, which was written with `dashes`.
    fn set(&mut self, name: &str, dashes: &str, parser: &mut Parser) -> Result<(), lexopt::Error> {
        match name {
            "ranks" | "np" => self.nranks = parser.value()?.parse()?,
            "b" | "minbytes" => self.min_bytes = size(parser)?,
            "e" | "maxbytes" => self.max_bytes = size(parser)?,
            "i" | "stepbytes" => self.step = Step::Bytes(size(parser)?),
            "f" | "stepfactor" => self.step = Step::Factor(parser.value()?.parse()?),
            "n" | "iters" => self.iterations = parser.value()?.parse()?,
            "m" | "agg_iters" => self.calls = parser.value()?.parse()?,
            "w" | "warmup_iters" => self.warmup = parser.value()?.parse()?,
            "c" | "check" => self.checks = parser.value()?.parse()?,
            "o" | "op" => self.ops = all_or_one(&parser.value()?.string()?, RedOp::ALL)?,
            "d" | "datatype" => self.dtypes = all_or_one(&parser.value()?.string()?, DType::ALL)?,
            "z" | "blocking" => self.barrier = choice(name, parser, &[false, true, false])?,
            "u" | "unalign" => self.unaligned = choice(name, parser, &[false, true])?,
            "a" | "average" => {
                let all = [Average::First, Average::Mean, Average::Min, Average::Max];
                self.average = choice(name, parser, &all)?;
            }
            "T" | "timeout" => self.timeout = parser.value()?.parse()?,
            "t" | "nthreads" | "g" | "ngpus" => {
                if parser.value()? != "1" {
                    return Err(
                        format!("--{name}: only 1; one rank is one process here, see -np").into()
                    );
                }
            }
            _ if UNSUPPORTED.contains(&name) => {
                return Err(format!(
                    "option '{name}' of nccl-tests is not supported yet; see maypole bench --help"
                )
                .into());
            }
            _ => {
                return Err(
                    format!("'{dashes}{name}' is not an option; see maypole bench --help").into()
                );
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), lexopt::Error> {
        let fine = [
            (self.nranks > 0, "-np: at least one rank"),
            (self.min_bytes <= self.max_bytes, "-b is larger than -e"),
            (
                self.step != Step::Bytes(0) || self.min_bytes == self.max_bytes,
                "-i 0 never reaches -e",
            ),
            (self.step != Step::Factor(0), "-f: at least 1"),
            (
                self.step != Step::Factor(1) || self.min_bytes == self.max_bytes,
                "-f 1 never reaches -e",
            ),
            (self.iterations > 0, "-n: at least one iteration"),
            (self.calls > 0, "-m: at least one call"),
            (self.roots.iter().all(|&root| root < self.nranks), "-r: no such rank"),
        ];
        match fine.into_iter().find(|(fine, _)| !fine) {
            Some((_, text)) => Err(text.into()),
            None => Ok(()),
        }
    }

    /// The sizes in bytes, in order.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = usize> {
        let (max, step) = (self.max_bytes, self.step);
        std::iter::successors(Some(self.min_bytes), move |&bytes| match step {
            Step::Bytes(0) | Step::Factor(1) => None,
            Step::Bytes(more) => bytes.checked_add(more),
            Step::Factor(_) if bytes == 0 => Some(8),
            Step::Factor(factor) => bytes.checked_mul(factor),
        })
        .take_while(move |&bytes| bytes <= max)
    }

    /// The reductions to measure; None for a collective that has none.
    pub(crate) fn reductions(&self) -> Vec<Option<RedOp>> {
        if self.operation.reduces {
            self.ops.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }

    /// The roots to measure; None for a collective that has none.
    pub(crate) fn roots(&self) -> Vec<Option<u32>> {
        if self.operation.rooted {
            self.roots.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            operation: OPERATIONS[0],
            nranks: 1,
            min_bytes: 32 << 20,
            max_bytes: 32 << 20,
            step: Step::Bytes(1 << 20),
            iterations: 20,
            calls: 1,
            warmup: 1,
            checks: 1,
            dtypes: vec![DType::Float32],
            ops: vec![RedOp::Sum],
            roots: vec![0],
            barrier: false,
            unaligned: false,
            average: Average::Mean,
            timeout: 0,
        }
    }
}

fn named(name: &str) -> Result<Operation, lexopt::Error> {
    // nccl-tests' programs are called all_reduce_perf and so on.
    Operation::named(name.trim_end_matches("_perf")).ok_or_else(|| {
        let known = OPERATIONS.map(|o| o.name).join(", ");
        format!("'{name}' is not a collective that can be measured; known are: {known}").into()
    })
}

fn choice<T: Copy>(name: &str, parser: &mut Parser, all: &[T]) -> Result<T, lexopt::Error> {
    let index: usize = parser.value()?.parse()?;
    all.get(index).copied().ok_or_else(|| {
        format!("{name}: {index} is not supported; 0 to {} are", all.len() - 1).into()
    })
}

fn all_or_one<T: Copy + std::str::FromStr<Err = maypole_algorithms::types::UnknownName>>(
    text: &str,
    all: impl IntoIterator<Item = T>,
) -> Result<Vec<T>, lexopt::Error> {
    if text == "all" {
        return Ok(all.into_iter().collect());
    }
    match text.parse() {
        Ok(one) => Ok(vec![one]),
        Err(error) => Err(lexopt::Error::Custom(Box::new(error))),
    }
}

/// A number of bytes with an optional fraction and an optional K, M or G.
pub(crate) fn size(parser: &mut Parser) -> Result<usize, lexopt::Error> {
    let text = parser.value()?.string()?;
    let unit = match text.as_bytes().last() {
        Some(b'K' | b'k') => 1 << 10,
        Some(b'M' | b'm') => 1 << 20,
        Some(b'G' | b'g') => 1 << 30,
        _ => 1,
    };
    let number = if unit == 1 { &text[..] } else { &text[..text.len() - 1] };
    match number.parse::<f64>() {
        Ok(value) if value >= 0.0 && value * (unit as f64) < 2f64.powi(60) => {
            Ok((value * unit as f64) as usize)
        }
        _ => Err(format!("'{text}' is not a size: a number, then K, M, G or nothing").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        match Options::parse(line.split_whitespace().map(OsString::from)) {
            Ok(options) => options.ok_or_else(|| "help".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = parse(
            "all_reduce -np 4 -b 8 -e 1.5K -f 2 -n 5 -w 0 -c 2 -d half -o max -z 1 -m 3 -u 1",
        );
        let long = parse(
            "--ranks 4 --minbytes=8 --maxbytes 1.5k --stepfactor 2 --iters 5 --warmup_iters 0 --check 2 \
             --datatype half --op max --blocking 1 --agg_iters 3 --unalign 1 all_reduce",
        );
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        let short = short.unwrap();
        assert_eq!((short.nranks, short.iterations, short.max_bytes), (4, 5, 1536));
        assert_eq!(short.sizes().collect::<Vec<_>>(), [8, 16, 32, 64, 128, 256, 512, 1024]);
    }

    #[test]
    fn iterations_and_ranks_are_told_apart() {
        let options = parse("all_reduce -n7 -np 3").unwrap();
        assert_eq!((options.iterations, options.nranks), (7, 3));
    }

    #[test]
    fn defaults_are_those_of_nccl_tests() {
        let options = parse("all_reduce_perf").unwrap();
        assert_eq!(options.sizes().collect::<Vec<_>>(), [32 << 20]);
        assert_eq!((options.iterations, options.warmup, options.checks), (20, 1, 1));
        assert_eq!((options.dtypes, options.ops), (vec![DType::Float32], vec![RedOp::Sum]));
    }

    #[test]
    fn all_means_all() {
        let options = parse("broadcast -np 3 -d all -o all -r all").unwrap();
        assert_eq!((options.dtypes.len(), options.ops.len()), (12, 6));
        assert_eq!(options.roots(), [Some(0), Some(1), Some(2)]);
        assert_eq!(options.reductions(), [None]);
    }

    #[test]
    fn sizes_may_begin_at_nothing_and_end_anywhere() {
        let sizes = |line| parse(line).unwrap().sizes().collect::<Vec<_>>();
        assert_eq!(sizes("all_reduce -b 0 -e 20 -f 2"), [0, 8, 16]);
        assert_eq!(sizes("all_reduce -b 0 -e 0 -f 2"), [0]);
        assert_eq!(sizes("all_reduce -b 1K -e 3K -i 1K"), [1024, 2048, 3072]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, text) in [
            ("", "which collective"),
            ("sendrecv", "'sendrecv' is not a collective"),
            ("all_reduce -G 1", "'G' of nccl-tests is not supported yet"),
            ("all_reduce --run_cycles 2", "'run_cycles' of nccl-tests is not supported yet"),
            ("all_reduce --frobnicate", "'--frobnicate' is not an option"),
            ("all_reduce -q", "'-q' is not an option"),
            ("all_reduce -g 2", "only 1"),
            ("all_reduce -z 3", "3 is not supported"),
            ("all_reduce -d floaty", "'floaty' is not a data type"),
            ("all_reduce -o mean", "'mean' is not a"),
            ("all_reduce -b 2M -e 1M", "-b is larger than -e"),
            ("all_reduce -b 1 -e 2 -f 1", "never reaches"),
            ("all_reduce -b 1x", "'1x' is not a size"),
            ("all_reduce -b -1", "'-1' is not a size"),
            ("all_reduce -np 0", "at least one rank"),
            ("broadcast -np 2 -r 2", "no such rank"),
            ("all_reduce more", "more"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
