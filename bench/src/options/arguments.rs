//! The command line of a benchmark, read.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};
use maypole_algorithms::{DType, RedOp};

use super::{Average, Memory, Options, Step, Variables};
use crate::operation::Operation;
use crate::status::Failure;

/// Options of nccl-tests that ask something of a GPU: both names, the values that ask nothing, and why another one is refused.
const OF_GPUS: [(&str, &str, &[&str], &str); 6] = [
    ("G", "cudagraph", &["0"], "there are no graphs of calls on host memory"),
    ("R", "local_register", &["0"], "host memory needs no registration here"),
    ("x", "cta_policy", &["0"], "host memory is not moved by thread blocks"),
    ("D", "device_implementation", &["0"], "kernels that communicate need a GPU"),
    ("V", "device_cta_count", &["16"], "host memory is not moved by thread blocks"),
    (
        "y",
        "stream_null",
        &["0"],
        "there are no streams: calls on host memory are over when they return",
    ),
];

impl Options {
    /// Reads what follows `maypole bench`, and the environment; None if help is asked for.
    ///
    /// # Errors
    /// What is not understood, or not possible on host memory.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = OsString>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Failure> {
        // nccl-tests has -n, mpirun has -np: the latter is a word of its own.
        let args = args.into_iter().map(|a| if a == "-np" { "--processes".into() } else { a });
        let mut parser = Parser::from_args(args);
        let mut operation = None;
        let mut options = Self::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => return Ok(None),
                Arg::Value(name) if operation.is_none() => {
                    operation = Some(named(&name.string()?)?);
                }
                Arg::Short(letter) => options.set(&letter.to_string(), "-", &mut parser)?,
                Arg::Long(name) => {
                    let name = name.to_owned();
                    options.set(&name, "--", &mut parser)?;
                }
                Arg::Value(_) => return Err(arg.unexpected().into()),
            }
        }
        let missing = || Failure::usage("which collective? See maypole bench --help");
        options.operation = operation.ok_or_else(missing)?;
        options.variables = Variables::read(lookup)?;
        options.check()?;
        Ok(Some(options))
    }

    /// Takes the value of option `name`, which was written with `dashes`.
    fn set(&mut self, name: &str, dashes: &str, parser: &mut Parser) -> Result<(), Failure> {
        match name {
            "processes" => self.processes = Some(parser.value()?.parse()?),
            "t" | "nthreads" => self.threads = parser.value()?.parse()?,
            "g" | "ngpus" => self.gpus = parser.value()?.parse()?,
            "b" | "minbytes" => self.min_bytes = size(parser)?,
            "e" | "maxbytes" => self.max_bytes = size(parser)?,
            "i" | "stepbytes" => self.step = Step::Bytes(size(parser)?),
            "f" | "stepfactor" => self.step = Step::Factor(parser.value()?.parse()?),
            "n" | "iters" => self.iterations = parser.value()?.parse()?,
            "m" | "agg_iters" => self.calls = parser.value()?.parse()?,
            "w" | "warmup_iters" => self.warmup = parser.value()?.parse()?,
            "N" | "run_cycles" => self.cycles = parser.value()?.parse()?,
            "p" | "parallel_init" => self.parallel_init = truth(name, parser)?,
            "c" | "check" => self.checks = parser.value()?.parse()?,
            "o" | "op" => self.ops = all_or_one(&parser.value()?.string()?, RedOp::ALL)?,
            "d" | "datatype" => self.dtypes = all_or_one(&parser.value()?.string()?, DType::ALL)?,
            "r" | "root" => {
                let value = parser.value()?;
                self.root = if value == "all" { None } else { Some(value.parse()?) };
            }
            "z" | "blocking" => self.blocking = choice(name, parser, &[0, 1, 2, 3])?,
            "u" | "unalign" => self.unaligned = parser.value()?.parse()?,
            "memory" => {
                self.buffers = match parser.value()?.string()?.as_str() {
                    "malloc" => Memory::Allocator,
                    "maypole" => Memory::Library,
                    other => {
                        return Err(Failure::usage(format!("--memory {other}: malloc or maypole")));
                    }
                };
            }
            "a" | "average" => {
                let all = [Average::First, Average::Mean, Average::Min, Average::Max];
                self.average = choice(name, parser, &all)?;
            }
            "T" | "timeout" => self.timeout = parser.value()?.parse()?,
            "C" | "report_cputime" => self.cpu_time = truth(name, parser)?,
            "S" | "report_timestamps" => self.timestamps = truth(name, parser)?,
            "J" | "output_file" => self.json = Some(PathBuf::from(parser.value()?)),
            "M" | "memory_report" => self.memory = truth(name, parser)?,
            "I" => self.per_iteration = truth(name, parser)?,
            "K" => self.skip = parser.value()?.parse()?,
            "fresh" => self.fresh = true,
            "percentiles" => self.percentiles = true,
            "resources" => self.resources = true,
            "roof" => self.roof = true,
            "plot" => self.plot = Some(PathBuf::from(parser.value()?)),
            _ => return of_gpus(name, dashes, parser),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        let one_size = self.min_bytes == self.max_bytes;
        let fine = [
            (self.processes != Some(0), "-np: at least one process"),
            (self.threads > 0, "-t: at least one thread"),
            (self.gpus > 0, "-g: at least one rank"),
            (
                self.threads.checked_mul(self.gpus).is_some_and(|n| n <= 4096),
                "-t times -g: at most 4096",
            ),
            (self.min_bytes <= self.max_bytes, "-b is larger than -e"),
            (self.step != Step::Bytes(0) || one_size, "-i 0 never reaches -e"),
            (self.step != Step::Factor(0), "-f: at least 1"),
            (self.step != Step::Factor(1) || one_size, "-f 1 never reaches -e"),
            (self.iterations > 0, "-n: at least one iteration"),
            (self.calls > 0, "-m: at least one call"),
            (self.unaligned <= 4096, "-u: at most 4096 elements"),
            (self.skip < self.iterations, "-K leaves no iteration of -n"),
            (
                self.skip == 0 || self.times_iterations(),
                "-K is about single iterations: it needs -I 1 or --percentiles",
            ),
            (
                self.variables.matrix_file.is_none()
                    || self.operation != Operation::AllToAllV
                    || one_size,
                "NCCL_TESTS_ALLTOALLV_MATRIX_FILE has the sizes: -b and -e must be equal",
            ),
        ];
        match fine.into_iter().find(|(fine, _)| !fine) {
            Some((_, text)) => Err(Failure::usage(text)),
            None => Ok(()),
        }
    }
}

/// An option that is none of ours: one for GPUs, or a mistake.
fn of_gpus(name: &str, dashes: &str, parser: &mut Parser) -> Result<(), Failure> {
    let known = OF_GPUS.iter().find(|(letter, long, ..)| name == *letter || name == *long);
    let Some((_, _, harmless, why)) = known else {
        let text = format!("'{dashes}{name}' is not an option; see maypole bench --help");
        return Err(Failure::usage(text));
    };
    let value = parser.value()?.string()?;
    if harmless.contains(&value.as_str()) {
        return Ok(());
    }
    Err(Failure::unsupported(format!("{dashes}{name} {value}: {why}; leave it at {}", harmless[0])))
}

fn named(name: &str) -> Result<Operation, Failure> {
    // nccl-tests' programs are called all_reduce_perf and so on.
    Operation::named(name.trim_end_matches("_perf")).ok_or_else(|| {
        let known = Operation::ALL.map(Operation::name).join(", ");
        let text = format!("'{name}' is not a collective that can be measured; known are: {known}");
        Failure::usage(text)
    })
}

fn truth(name: &str, parser: &mut Parser) -> Result<bool, Failure> {
    choice(name, parser, &[false, true])
}

fn choice<T: Copy>(name: &str, parser: &mut Parser, all: &[T]) -> Result<T, Failure> {
    let index: usize = parser.value()?.parse()?;
    all.get(index).copied().ok_or_else(|| {
        Failure::usage(format!("{name}: {index} is not supported; 0 to {} are", all.len() - 1))
    })
}

fn all_or_one<T: Copy + std::str::FromStr<Err = maypole_algorithms::types::UnknownName>>(
    text: &str,
    all: impl IntoIterator<Item = T>,
) -> Result<Vec<T>, Failure> {
    if text == "all" {
        return Ok(all.into_iter().collect());
    }
    match text.parse() {
        Ok(one) => Ok(vec![one]),
        Err(error) => Err(Failure::usage(error.to_string())),
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
    use crate::status;

    fn parse(line: &str) -> Result<Options, Failure> {
        let options = Options::parse(line.split_whitespace().map(OsString::from), &|_| None)?;
        options.ok_or_else(|| Failure::internal("help"))
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = parse(
            "all_reduce -np 4 -t 2 -g 3 -b 8 -e 1.5K -f 2 -n 5 -w 0 -N 0 -p 1 -c 2 -d half -o max -r 1 -z 1 -m 3 -u 1 \
             -a 3 -T 9 -C 1 -S 1 -J x.json -M 1 -G 0 -R 0 -x 0 -D 0 -V 16 -y 0",
        );
        let long = parse(
            "--processes 4 --nthreads=2 --ngpus 3 --minbytes=8 --maxbytes 1.5k --stepfactor 2 --iters 5 --warmup_iters 0 \
             --run_cycles 0 --parallel_init 1 --check 2 --datatype half --op max --root 1 --blocking 1 --agg_iters 3 \
             --unalign 1 --average 3 --timeout 9 --report_cputime 1 --report_timestamps 1 --output_file x.json \
             --memory_report 1 --cudagraph 0 --local_register 0 --cta_policy 0 --device_implementation 0 \
             --device_cta_count 16 --stream_null 0 all_reduce",
        );
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        let short = short.unwrap();
        assert_eq!((short.processes, short.iterations, short.max_bytes), (Some(4), 5, 1536));
        assert_eq!((short.ranks_per_process(), short.cycles, short.timeout), (6, 0, 9));
        assert_eq!(short.sizes().collect::<Vec<_>>(), [8, 16, 32, 64, 128, 256, 512, 1024]);
    }

    #[test]
    fn iterations_and_processes_are_told_apart() {
        let options = parse("all_reduce -n7 -np 3").unwrap();
        assert_eq!((options.iterations, options.processes), (7, Some(3)));
    }

    #[test]
    fn defaults_are_those_of_nccl_tests() {
        let options = parse("all_reduce_perf").unwrap();
        assert_eq!(options.sizes().collect::<Vec<_>>(), [32 << 20]);
        assert_eq!((options.iterations, options.warmup, options.checks), (20, 1, 1));
        assert_eq!((options.cycles, options.timeout, options.ranks_per_process()), (1, 0, 1));
        assert_eq!((options.dtypes, options.ops), (vec![DType::Float32], vec![RedOp::Sum]));
    }

    #[test]
    fn all_means_all() {
        let options = parse("broadcast -np 3 -d all -o all -r all").unwrap();
        assert_eq!((options.dtypes.len(), options.ops.len(), options.root), (12, 6, None));
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
            ("bisection", "'bisection' is not a collective"),
            ("all_reduce --frobnicate", "'--frobnicate' is not an option"),
            ("all_reduce -q", "'-q' is not an option"),
            ("all_reduce -g 0", "at least one rank"),
            ("all_reduce -z 4", "4 is not supported"),
            ("all_reduce -d floaty", "'floaty' is not a data type"),
            ("all_reduce -o mean", "'mean' is not a"),
            ("all_reduce -b 2M -e 1M", "-b is larger than -e"),
            ("all_reduce -b 1 -e 2 -f 1", "never reaches"),
            ("all_reduce -b 1x", "'1x' is not a size"),
            ("all_reduce -b -1", "'-1' is not a size"),
            ("all_reduce -np 0", "at least one process"),
            ("all_reduce --memory mine", "malloc or maypole"),
            ("all_reduce -K 3", "-K is about single iterations"),
            ("all_reduce -I 1 -K 20", "-K leaves no iteration"),
            ("all_reduce more", "more"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.text.contains(text), "{line}: {error}");
            assert_eq!((error.status, error.text.lines().count()), (status::USAGE, 1), "{line}");
        }
    }

    #[test]
    fn what_needs_a_gpu_is_said() {
        for line in ["-G 1", "-R 2", "-x 1", "-D 1", "-V 8", "-y 1", "--cudagraph 3"] {
            let error = parse(&format!("all_reduce {line}")).expect_err(line);
            assert!(error.text.starts_with(&format!("{line}: ")), "{error}");
            assert_eq!(error.status, status::UNSUPPORTED, "{line}");
        }
    }
}
