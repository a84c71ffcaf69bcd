//! What to measure: nccl-tests' options with their letters and defaults, its environment variables,
//! and a few options of our own.

mod gpu_options;
mod parse;
pub(crate) mod variables;

use std::path::PathBuf;

use maypole_algorithms::{DType, RedOp};

use crate::operation::Operation;
use crate::status::Failure;
use gpu_options::GpuOptions;
use parse::{all_or_data_type, all_or_reduction, blocking_mode, root, shown_time, zero_or_one};
pub(crate) use parse::{operation, size};
pub(crate) use variables::TestVariables;

/// Several element types. (clap would read the option several times if the field were a `Vec`.)
pub(crate) type DataTypes = Vec<DType>;
/// Several reductions.
pub(crate) type Reductions = Vec<RedOp>;
/// A root; None for every rank in turn.
pub(crate) type RootChoice = Option<u32>;

/// What is appended to `maypole bench --help`.
const EXPLANATION: &str = "\
The number of ranks is processes x threads x ranks per thread. The time of an iteration is that of
its slowest rank. #wrong counts, over all ranks, the elements that are not exactly as expected, the
damaged bytes around the receive buffer, and the elements of the send buffer that were changed.
In place, the results of alltoall, alltoallv and sendrecv are not checked: N/A.

Environment:
  NCCL_TESTS_SPLIT          'AND 0x7', 'OR 1', 'MOD 2' or 'DIV 4', applied to the number of a
                            process: processes with the same result form a group. All groups run at
                            once; the table shows rank 0's group, and times over all ranks
  NCCL_TESTS_SPLIT_MASK     a hexadecimal number: as AND; it takes precedence
  NCCL_TESTS_MIN_BW         GB/s: if the average is below 0.9 of it, the exit status is 7
  NCCL_TESTS_DEVICE         the first of the numbers shown as devices; host memory has only one
  NCCL_TESTS_ALLTOALLV_SPREAD         0 for equal blocks, 1 for blocks that grow with the distance
                                      between the ranks, or a value between (1)
  NCCL_TESTS_ALLTOALLV_MATRIX_FILE    bytes from each rank (row) to each rank (column)
  NCCL_TESTS_ALLTOALLV_MATRIX_SCALE   a factor for them (1)
  NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY  1 prints a line for each rank after each row
  MAYPOLE_BENCH_CORRUPT=1   tests the check itself: every rank inverts a byte of its result before
                            it is checked, so the run must report wrong values and exit with 7
  MAYPOLE_BENCH_UNBOUND=1   does not bind the processes of -np to cores; without it, each process
                            with one rank is bound to a core

The programs that are named as those of nccl-tests read their command line as these do: long names
may be abbreviated, a number that is none is 0, and wrong values are ignored or replaced, with a
line that says so. The exit status for a wrong size is 255 there.

Exit status: 0 success, 1 internal error, 2 the system failed, 3 the library failed, 4 timeout,
5 not possible on host memory, 6 usage error, 7 wrong values or too little bandwidth; or the status
of a process that failed, or 128 plus the number of the signal that ended it.";

/// What to measure and how to show it. All ranks have the same options.
#[derive(Clone, Debug, clap::Args)]
#[command(
    override_usage = "maypole bench [OPTIONS] <COLLECTIVE>\n       COLLECTIVE_perf [OPTIONS]",
    after_help = EXPLANATION
)]
pub(crate) struct Options {
    /// all_reduce, all_gather, reduce_scatter, broadcast, reduce, alltoall, alltoallv, gather,
    /// scatter, sendrecv or hypercube
    #[arg(value_name = "COLLECTIVE", value_parser = operation)]
    pub(crate) operation: Operation,
    /// Start N processes on this host (also -np N). Without it, this process or the processes that
    /// a launcher started are measured
    #[arg(long, value_name = "N")]
    pub(crate) processes: Option<u32>,
    /// Threads per process
    #[arg(short = 't', long = "nthreads", value_name = "N", default_value = "1")]
    pub(crate) threads: u32,
    /// Ranks per thread; on host memory each is a thread of its own
    #[arg(short = 'g', long = "ngpus", value_name = "N", default_value = "1")]
    pub(crate) gpus: u32,
    /// Smallest size in bytes; K, M or G may follow
    #[arg(short = 'b', long = "minbytes", value_name = "SIZE", value_parser = size,
        default_value = "32M")]
    pub(crate) min_bytes: usize,
    /// Largest size
    #[arg(short = 'e', long = "maxbytes", value_name = "SIZE", value_parser = size,
        default_value = "32M")]
    pub(crate) max_bytes: usize,
    /// Difference between one size and the next [default: 1M]
    #[arg(short = 'i', long = "stepbytes", value_name = "SIZE", value_parser = size)]
    pub(crate) step_bytes: Option<usize>,
    /// Factor between one size and the next, instead of -i; a size of 0 is followed by 8 bytes. A
    /// factor of 0 or 1 is as none
    #[arg(short = 'f', long = "stepfactor", value_name = "N")]
    pub(crate) step_factor: Option<usize>,
    /// Timed iterations
    #[arg(short = 'n', long = "iters", value_name = "N", default_value = "20")]
    pub(crate) iterations: usize,
    /// Calls per iteration, one after the other
    #[arg(short = 'm', long = "agg_iters", value_name = "N", default_value = "1")]
    pub(crate) calls: usize,
    /// Untimed iterations before the timed ones
    #[arg(short = 'w', long = "warmup_iters", value_name = "N", default_value = "1")]
    pub(crate) warmup: usize,
    /// How often the sizes of each type, operation and root are measured; 0 repeats them without
    /// end
    #[arg(short = 'N', long = "run_cycles", value_name = "N", default_value = "1")]
    pub(crate) cycles: u64,
    /// Only prints a line in the header: ranks are always initialized in threads of their own
    #[arg(short = 'p', long = "parallel_init", value_name = "0|1", value_parser = zero_or_one,
        action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) parallel_init: bool,
    /// Calls whose results are checked; 0 for none
    #[arg(short = 'c', long = "check", value_name = "N", default_value = "1")]
    pub(crate) checks: usize,
    /// sum, prod, min, max, avg, mulsum or all
    #[arg(short = 'o', long = "op", value_name = "OP", value_parser = all_or_reduction,
        default_value = "sum")]
    pub(crate) ops: Reductions,
    /// int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, f8e4m3, f8e5m2 or
    /// all
    #[arg(short = 'd', long = "datatype", value_name = "TYPE", value_parser = all_or_data_type,
        default_value = "float")]
    pub(crate) dtypes: DataTypes,
    /// The root; all or -1 for every rank in turn
    #[arg(short = 'r', long = "root", value_name = "RANK", value_parser = root,
        default_value = "0")]
    pub(crate) root: RootChoice,
    /// 1 adds a barrier after each call, 3 after each iteration, outside of the measured time; 2 is
    /// as 0, since a call on host memory is complete when it returns
    #[arg(short = 'z', long = "blocking", value_name = "0..3", value_parser = blocking_mode,
        default_value = "0")]
    pub(crate) blocking: u32,
    /// Buffers begin N elements after the start of a page
    #[arg(short = 'u', long = "unalign", value_name = "N", default_value = "0")]
    pub(crate) unaligned: usize,
    /// The time shown: that of rank 0 (0), or the mean (1), shortest (2) or longest (3) of all
    /// ranks
    #[arg(short = 'a', long = "average", value_name = "0..3", value_parser = shown_time,
        default_value = "1")]
    pub(crate) average: ShownTime,
    /// Seconds without progress of a rank after which all processes end; 0 for never
    #[arg(short = 'T', long = "timeout", value_name = "SECONDS", default_value = "0")]
    pub(crate) timeout: u64,
    /// 1 shows the processor time of the calling thread instead of the time; bandwidths stay those
    /// of the time
    #[arg(short = 'C', long = "report_cputime", value_name = "0|1", value_parser = zero_or_one,
        action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) cpu_time: bool,
    /// 1 adds the time of day to each row
    #[arg(short = 'S', long = "report_timestamps", value_name = "0|1",
        value_parser = zero_or_one, action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) timestamps: bool,
    /// Writes the results as JSON too. An existing file is not overwritten: FILE.0, FILE.1 and so
    /// on are used instead
    #[arg(short = 'J', long = "output_file", value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// 1 adds a line about the memory of the processes at the end
    #[arg(short = 'M', long = "memory", alias = "memory_report", value_name = "0|1",
        value_parser = zero_or_one, action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) memory: bool,
    /// 1 adds columns: shortest iteration, longest, 99th percentile, coefficient of variation
    #[arg(short = 'I', long = "per_iter_timing", value_name = "0|1",
        value_parser = zero_or_one, action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) per_iteration: bool,
    /// Ignores the first N iterations in the columns about iterations
    #[arg(short = 'K', long = "per_iter_skip", value_name = "N", default_value = "0")]
    pub(crate) skip: usize,
    #[command(flatten)]
    pub(crate) gpu: GpuOptions,
    /// Where the buffers come from: malloc, or the library (ncclMemAlloc), whose memory other
    /// processes of the host can read in place
    #[arg(long = "buffers", value_enum, default_value = "malloc")]
    pub(crate) buffers: BufferMemory,
    /// Writes the buffers anew before each call, outside of the measured time. Otherwise unchanged
    /// data may still lie in the caches of the ranks that read it in the call before
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Adds columns: median and 99th percentile of the iterations, in us
    #[arg(long)]
    pub(crate) percentiles: bool,
    /// Adds columns for the out-of-place calls: processor time of all processes for the timed
    /// calls, and the largest memory of a process
    #[arg(long)]
    pub(crate) resources: bool,
    /// Adds columns: the time in which all ranks at once read what they send and write what they
    /// receive, without a collective, and how much of the measured time that is
    #[arg(long)]
    pub(crate) roof: bool,
    /// Draws bandwidth and time by size
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// What the environment variables say.
    #[arg(skip)]
    pub(crate) variables: TestVariables,
}

/// How one size follows from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeStep {
    /// -i: by adding so many bytes.
    Bytes(usize),
    /// -f: by multiplying with this factor.
    Factor(usize),
}

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BufferMemory {
    /// malloc.
    #[value(name = "malloc", help = None)]
    Allocator,
    /// `maypole::memory`, which is `ncclMemAlloc`.
    #[value(name = "maypole", help = None)]
    Library,
}

/// Which ranks' time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownTime {
    /// The time of rank 0.
    First,
    /// The mean of all ranks.
    Mean,
    /// The shortest of all ranks.
    Min,
    /// The longest of all ranks.
    Max,
}

impl ShownTime {
    /// The time to show, given the times of all ranks.
    pub(crate) fn of(self, all: impl ExactSizeIterator<Item = f64>) -> f64 {
        let ranks = all.len() as f64;
        let mut all = all;
        match self {
            Self::First => all.next().unwrap_or(0.0),
            Self::Mean => all.sum::<f64>() / ranks,
            Self::Min => all.fold(f64::INFINITY, f64::min),
            Self::Max => all.fold(0.0, f64::max),
        }
    }
}

impl Options {
    /// Reads the environment variables by `lookup`, and checks that the options fit together.
    ///
    /// # Errors
    /// What is wrong, or not possible on host memory.
    pub(crate) fn complete(
        mut self,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        self.gpu.check()?;
        self.variables = TestVariables::read(lookup)?;
        self.check()?;
        Ok(self)
    }

    /// Ranks of a process.
    pub(crate) fn ranks_per_process(&self) -> u32 {
        self.threads * self.gpus
    }

    /// Whether the time of each iteration is taken.
    pub(crate) fn times_iterations(&self) -> bool {
        self.per_iteration || self.percentiles
    }

    /// How one size follows from the one before.
    pub(crate) fn step(&self) -> SizeStep {
        match (self.step_factor, self.step_bytes) {
            (Some(factor @ 2..), _) => SizeStep::Factor(factor),
            (_, bytes) => SizeStep::Bytes(bytes.unwrap_or(1 << 20)),
        }
    }

    /// The sizes in bytes, smallest first.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = usize> {
        let (max, step) = (self.max_bytes, self.step());
        std::iter::successors(Some(self.min_bytes), move |&bytes| match step {
            SizeStep::Bytes(0) => None,
            SizeStep::Bytes(more) => bytes.checked_add(more),
            SizeStep::Factor(_) if bytes == 0 => Some(8),
            SizeStep::Factor(factor) => bytes.checked_mul(factor),
        })
        .take_while(move |&bytes| bytes <= max)
    }

    /// The reductions to measure; one None for a collective that does not reduce. sendrecv does not
    /// either, but nccl-tests measures it once for each.
    pub(crate) fn reductions(&self) -> Vec<Option<RedOp>> {
        if self.operation.reduces() || self.operation == Operation::SendRecv {
            self.ops.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }

    /// The roots to measure among `nranks` ranks; one None for a collective without a root.
    pub(crate) fn roots(&self, nranks: u32) -> Vec<Option<u32>> {
        match self.root {
            _ if !self.operation.rooted() => vec![None],
            Some(root) => vec![Some(root)],
            None => (0..nranks).map(Some).collect(),
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let one_size = self.min_bytes == self.max_bytes;
        let rules = [
            (self.processes != Some(0), "-np: at least one process"),
            (self.threads > 0, "-t: at least one thread"),
            (self.gpus > 0, "-g: at least one rank"),
            (
                self.threads.checked_mul(self.gpus).is_some_and(|n| n <= 4096),
                "-t times -g: at most 4096",
            ),
            (self.min_bytes <= self.max_bytes, "-b is larger than -e"),
            (self.step() != SizeStep::Bytes(0) || one_size, "-i 0 never reaches -e"),
            (self.unaligned <= 4096, "-u: at most 4096 elements"),
            (self.skip == 0 || self.skip < self.iterations, "-K leaves no iteration of -n"),
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
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, text)) => Err(Failure::usage(text)),
            None => Ok(()),
        }
    }
}

/// The options of `maypole bench`, from one line.
#[cfg(test)]
fn parse_line(line: &str) -> Result<Options, Failure> {
    crate::grammar::parse_line::<Options>("bench", line)?.complete(&|_| None)
}

#[cfg(test)]
impl Default for Options {
    /// The options of `maypole bench all_reduce`.
    fn default() -> Self {
        parse_line("all_reduce").expect("the defaults are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status;

    #[test]
    fn the_shown_time_is_that_of_the_chosen_ranks() {
        let of = |average: ShownTime| average.of([3.0, 1.0, 5.0].into_iter());
        let all = [ShownTime::First, ShownTime::Mean, ShownTime::Min, ShownTime::Max];
        assert_eq!(all.map(of), [3.0, 3.0, 1.0, 5.0]);
    }

    #[test]
    fn only_collectives_with_a_root_have_one() {
        let options = Options { root: None, ..Options::default() };
        assert_eq!(options.roots(3), [None]);
        let options = Options { operation: Operation::Gather, ..options };
        assert_eq!(options.roots(3), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn short_and_long_forms_are_the_same() {
        let short = parse_line(
            "all_reduce -np 4 -t 2 -g 3 -b 8 -e 1.5K -f 2 -n 5 -w 0 -N 0 -p 1 -c 2 -d half -o max \
             -r 1 -z 1 -m 3 -u 1 -a 3 -T 9 -C 1 -S 1 -J x.json -M 1 -G 0 -R 0 -x 0 -D 0 -V 16 -y 0",
        );
        let long = parse_line(
            "--processes 4 --nthreads=2 --ngpus 3 --minbytes=8 --maxbytes 1.5k --stepfactor 2 \
             --iters 5 --warmup_iters 0 --run_cycles 0 --parallel_init 1 --check 2 --datatype half \
             --op max --root 1 --blocking 1 --agg_iters 3 --unalign 1 --average 3 --timeout 9 \
             --report_cputime 1 --report_timestamps 1 --output_file x.json --memory_report 1 \
             --cudagraph 0 --local_register 0 --cta_policy 0 --device_implementation 0 \
             --device_cta_count 16 --stream_null 0 all_reduce",
        );
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        let short = short.unwrap();
        assert_eq!((short.processes, short.iterations, short.max_bytes), (Some(4), 5, 1536));
        assert_eq!((short.ranks_per_process(), short.cycles, short.timeout), (6, 0, 9));
        assert_eq!(short.sizes().collect::<Vec<_>>(), [8, 16, 32, 64, 128, 256, 512, 1024]);
    }

    #[test]
    fn iterations_and_processes_are_different_options() {
        let options = parse_line("all_reduce -n7 -np 3").unwrap();
        assert_eq!((options.iterations, options.processes), (7, Some(3)));
    }

    #[test]
    fn the_last_value_of_an_option_counts() {
        let options = parse_line("all_reduce -n 7 -n=8").unwrap();
        assert_eq!(options.iterations, 8);
    }

    #[test]
    fn a_factor_takes_precedence_over_a_difference() {
        let sizes = |line| parse_line(line).unwrap().sizes().collect::<Vec<_>>();
        assert_eq!(sizes("all_reduce -b 8 -e 64 -f 4 -i 8"), [8, 32]);
        assert_eq!(sizes("all_reduce -b 8 -e 64 -i 8 -f 4"), [8, 32]);
        assert_eq!(sizes("all_reduce -b 8 -e 24 -f 1 -i 8"), [8, 16, 24]);
        assert_eq!(sizes("all_reduce -b 8 -e 24 -f 0 -i 8"), [8, 16, 24]);
    }

    #[test]
    fn defaults_are_those_of_nccl_tests() {
        let options = parse_line("all_reduce_perf").unwrap();
        assert_eq!(options.sizes().collect::<Vec<_>>(), [32 << 20]);
        assert_eq!((options.iterations, options.warmup, options.checks), (20, 1, 1));
        assert_eq!((options.cycles, options.timeout, options.ranks_per_process()), (1, 0, 1));
        assert_eq!((options.dtypes, options.ops), (vec![DType::Float32], vec![RedOp::Sum]));
    }

    #[test]
    fn all_selects_all_types_operations_and_roots() {
        let options = parse_line("broadcast -np 3 -d all -o all -r all").unwrap();
        assert_eq!((options.dtypes.len(), options.ops.len(), options.root), (12, 6, None));
        assert_eq!(options.reductions(), [None]);
        assert_eq!(parse_line("broadcast -r -1").unwrap().root, None);
        assert_eq!(parse_line("sendrecv").unwrap().reductions(), [Some(RedOp::Sum)]);
    }

    #[test]
    fn sizes_may_begin_at_zero_and_end_between_steps() {
        let sizes = |line| parse_line(line).unwrap().sizes().collect::<Vec<_>>();
        assert_eq!(sizes("all_reduce -b 0 -e 20 -f 2"), [0, 8, 16]);
        assert_eq!(sizes("all_reduce -b 0 -e 0 -f 2"), [0]);
        assert_eq!(sizes("all_reduce -b 1K -e 3K -i 1K"), [1024, 2048, 3072]);
    }

    #[test]
    fn errors_of_a_benchmark_name_what_is_wrong() {
        for (line, text) in [
            ("", "which collective"),
            ("bisection", "'bisection' is not a collective"),
            ("all_reduce --frobnicate", "'--frobnicate' is not an option"),
            ("all_reduce -q", "'-q' is not an option"),
            ("all_reduce -g 0", "at least one rank"),
            ("all_reduce -n x", "-n \"x\": "),
            ("all_reduce --iters x", "--iters \"x\": "),
            ("all_reduce -np x", "-np \"x\": "),
            ("all_reduce -n", "-n needs a value"),
            ("all_reduce -z 4", "4 is not supported"),
            ("all_reduce -d floaty", "'floaty' is not a data type"),
            ("all_reduce -o mean", "'mean' is not a"),
            ("all_reduce -b 2M -e 1M", "-b is larger than -e"),
            ("all_reduce -b 1 -e 2 -i 0", "never reaches"),
            ("all_reduce -b 1x", "'1x' is not a size"),
            ("all_reduce -b -1", "'-1' is not a size"),
            ("all_reduce -np 0", "at least one process"),
            ("all_reduce --buffers mine", "malloc or maypole"),
            ("all_reduce -K 3", "-K is about single iterations"),
            ("all_reduce -I 1 -K 20", "-K leaves no iteration"),
            ("all_reduce more", "more"),
        ] {
            let error = parse_line(line).expect_err(line);
            assert!(error.text.contains(text), "{line}: {error}");
            assert_eq!((error.status, error.text.lines().count()), (status::USAGE, 1), "{line}");
        }
    }

    #[test]
    fn options_that_need_a_gpu_are_refused() {
        for line in ["-G 1", "-D 1", "--cudagraph 3"] {
            let error = parse_line(&format!("all_reduce {line}")).expect_err(line);
            assert!(error.text.starts_with(&format!("{line}: ")), "{error}");
            assert_eq!(error.status, status::UNSUPPORTED, "{line}");
        }
    }

    #[test]
    fn other_options_about_gpus_change_nothing_or_register_buffers() {
        for (line, register) in
            [("", false), ("-R 1", true), ("-R 2", true), ("-y 1 -x 1 -V 8", false)]
        {
            let options = parse_line(&format!("all_reduce {line}")).unwrap();
            assert_eq!(options.gpu.registers(), register, "{line}");
        }
    }
}
