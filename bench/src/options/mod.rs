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
alltoall, alltoallv and sendrecv have no in-place form: N/A.

Environment:
  NCCL_TESTS_SPLIT          'AND 0x7', 'OR 1', 'MOD 2' or 'DIV 4', applied to the number of a
                            process: processes with the same result form a group. All groups run at
                            once; the table shows rank 0's group, and times over all ranks
  NCCL_TESTS_SPLIT_MASK     a hexadecimal number: as AND; it takes precedence
  NCCL_TESTS_MIN_BW         GB/s: if the average is below 0.9 of it, the exit status is 7
  NCCL_TESTS_DEVICE         the number shown as device; host memory has only one
  NCCL_TESTS_ALLTOALLV_SPREAD         0 for equal blocks, 1 for blocks that grow with the distance
                                      between the ranks, or a value between (1)
  NCCL_TESTS_ALLTOALLV_MATRIX_FILE    bytes from each rank (row) to each rank (column)
  NCCL_TESTS_ALLTOALLV_MATRIX_SCALE   a factor for them (1)
  NCCL_TESTS_ALLTOALLV_PRINT_SUMMARY  1 prints a line for each rank after each row
  MAYPOLE_BENCH_CORRUPT=1   tests the check itself: every rank inverts a byte of its result before
                            it is checked, so the run must report wrong values and exit with 7
  MAYPOLE_BENCH_UNBOUND=1   does not bind the processes of -np to cores; without it, each process
                            with one rank is bound to a core

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
    #[arg(short = 'i', long = "stepbytes", value_name = "SIZE", value_parser = size,
        overrides_with = "step_factor")]
    pub(crate) step_bytes: Option<usize>,
    /// Factor between one size and the next; a size of 0 is followed by 8 bytes
    #[arg(short = 'f', long = "stepfactor", value_name = "N", overrides_with = "step_bytes")]
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
    /// How often the whole table is measured; 0 repeats it without end
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
    /// The root, or all
    #[arg(short = 'r', long = "root", value_name = "RANK", value_parser = root,
        default_value = "0")]
    pub(crate) root: RootChoice,
    /// 1 adds a barrier after each call, outside of the measured time; 2 and 3 are as 0, since a
    /// call on host memory is complete when it returns
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
    #[arg(short = 'M', long = "memory_report", value_name = "0|1", value_parser = zero_or_one,
        action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) memory: bool,
    /// 1 adds columns: shortest iteration, longest, 99th percentile, coefficient of variation
    #[arg(short = 'I', value_name = "0|1", value_parser = zero_or_one,
        action = clap::ArgAction::Set, default_value = "0")]
    pub(crate) per_iteration: bool,
    /// Ignores the first N iterations in the columns about iterations
    #[arg(short = 'K', value_name = "N", default_value = "0")]
    pub(crate) skip: usize,
    #[command(flatten)]
    pub(crate) gpu: GpuOptions,
    /// Where the buffers come from: malloc, or the library (ncclMemAlloc), whose memory other
    /// processes of the host can read in place
    #[arg(long = "memory", value_enum, default_value = "malloc")]
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
            (Some(factor), _) => SizeStep::Factor(factor),
            (None, bytes) => SizeStep::Bytes(bytes.unwrap_or(1 << 20)),
        }
    }

    /// The sizes in bytes, smallest first.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = usize> {
        let (max, step) = (self.max_bytes, self.step());
        std::iter::successors(Some(self.min_bytes), move |&bytes| match step {
            SizeStep::Bytes(0) | SizeStep::Factor(1) => None,
            SizeStep::Bytes(more) => bytes.checked_add(more),
            SizeStep::Factor(_) if bytes == 0 => Some(8),
            SizeStep::Factor(factor) => bytes.checked_mul(factor),
        })
        .take_while(move |&bytes| bytes <= max)
    }

    /// The reductions to measure; one None for a collective that does not reduce.
    pub(crate) fn reductions(&self) -> Vec<Option<RedOp>> {
        if self.operation.reduces() {
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
            (self.step() != SizeStep::Factor(0), "-f: at least 1"),
            (self.step() != SizeStep::Factor(1) || one_size, "-f 1 never reaches -e"),
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
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, text)) => Err(Failure::usage(text)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
impl Default for Options {
    /// The options of `maypole bench all_reduce`.
    fn default() -> Self {
        crate::command_line::parse_bench("all_reduce").expect("the defaults are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
