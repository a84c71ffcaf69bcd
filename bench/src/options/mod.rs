//! What to measure: nccl-tests' options with their letters and defaults, its variables, and a few options of our own.

mod arguments;
mod help;
pub(crate) mod variables;

use std::path::PathBuf;

use maypole_algorithms::{DType, RedOp};

use crate::operation::Operation;
pub(crate) use arguments::size;
pub(crate) use help::HELP;
pub(crate) use variables::Variables;

/// What to measure, and how to show it. Every rank has the same.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The collective.
    pub(crate) operation: Operation,
    /// -np: how many processes to start; None to start none.
    pub(crate) processes: Option<u32>,
    /// -t: threads of a process.
    pub(crate) threads: u32,
    /// -g: ranks of a thread; each is a thread here.
    pub(crate) gpus: u32,
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
    /// -N: how often the whole table is measured; 0 for ever.
    pub(crate) cycles: u64,
    /// -p: shown; ranks are always made in threads of their own.
    pub(crate) parallel_init: bool,
    /// -c: checked calls.
    pub(crate) checks: usize,
    /// -d: element types.
    pub(crate) dtypes: Vec<DType>,
    /// -o: reductions.
    pub(crate) ops: Vec<RedOp>,
    /// -r: the root; None for all.
    pub(crate) root: Option<u32>,
    /// -z: 1 for a barrier after each call.
    pub(crate) blocking: u32,
    /// -u: how many elements behind the start of a page buffers begin.
    pub(crate) unaligned: usize,
    /// --fresh: buffers are written anew before each call.
    pub(crate) fresh: bool,
    /// --memory: where buffers come from.
    pub(crate) buffers: Memory,
    /// -a: which rank's time is shown.
    pub(crate) average: Average,
    /// -T: seconds without progress after which everything is stopped; 0 for never.
    pub(crate) timeout: u64,
    /// -C: processor time is shown instead of time.
    pub(crate) cpu_time: bool,
    /// -S: a line ends with the time of day.
    pub(crate) timestamps: bool,
    /// -J: where results go as JSON.
    pub(crate) json: Option<PathBuf>,
    /// -M: a line about memory at the end.
    pub(crate) memory: bool,
    /// -I: columns about single iterations.
    pub(crate) per_iteration: bool,
    /// -K: so many first iterations are left out of what is said about single ones.
    pub(crate) skip: usize,
    /// --percentiles: columns with the median and the 99th percentile.
    pub(crate) percentiles: bool,
    /// --resources: columns with processor time and memory.
    pub(crate) resources: bool,
    /// --roof: columns with the machine's limit.
    pub(crate) roof: bool,
    /// --plot: where a picture goes.
    pub(crate) plot: Option<PathBuf>,
    /// What the environment says.
    pub(crate) variables: Variables,
}

/// The way from one size to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// -i: so many bytes more.
    Bytes(usize),
    /// -f: so many times more.
    Factor(usize),
}

/// Where buffers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// malloc.
    Allocator,
    /// `maypole::memory`, which is `ncclMemAlloc`.
    Library,
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

impl Average {
    /// The one to be shown of every rank's.
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
    /// Ranks of a process.
    pub(crate) fn ranks_per_process(&self) -> u32 {
        self.threads * self.gpus
    }

    /// True if the time of each iteration is taken.
    pub(crate) fn times_iterations(&self) -> bool {
        self.per_iteration || self.percentiles
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
        if self.operation.reduces() {
            self.ops.iter().copied().map(Some).collect()
        } else {
            vec![None]
        }
    }

    /// The roots to measure among `nranks`; None for a collective that has none.
    pub(crate) fn roots(&self, nranks: u32) -> Vec<Option<u32>> {
        match self.root {
            _ if !self.operation.rooted() => vec![None],
            Some(root) => vec![Some(root)],
            None => (0..nranks).map(Some).collect(),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            operation: Operation::AllReduce,
            processes: None,
            threads: 1,
            gpus: 1,
            min_bytes: 32 << 20,
            max_bytes: 32 << 20,
            step: Step::Bytes(1 << 20),
            iterations: 20,
            calls: 1,
            warmup: 1,
            cycles: 1,
            parallel_init: false,
            checks: 1,
            dtypes: vec![DType::Float32],
            ops: vec![RedOp::Sum],
            root: Some(0),
            blocking: 0,
            unaligned: 0,
            fresh: false,
            buffers: Memory::Allocator,
            average: Average::Mean,
            timeout: 0,
            cpu_time: false,
            timestamps: false,
            json: None,
            memory: false,
            per_iteration: false,
            skip: 0,
            percentiles: false,
            resources: false,
            roof: false,
            plot: None,
            variables: Variables::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_time_is_shown() {
        let of = |average: Average| average.of([3.0, 1.0, 5.0].into_iter());
        let all = [Average::First, Average::Mean, Average::Min, Average::Max];
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
