//! The results of a benchmark: rows and their summary, printed as nccl-tests' table, as JSON and as
//! a picture.

pub(crate) mod footer;
pub(crate) mod header;
pub(crate) mod iterations;
pub(crate) mod json;
pub(crate) mod number;
pub(crate) mod plot;
pub(crate) mod table;

use maypole_algorithms::{DType, RedOp};

use crate::operation::Operation;
use crate::operation::work::RankWork;
use crate::options::Options;
use iterations::Iterations;

/// The version of NCCL whose interface the library has.
pub(crate) const NCCL_VERSION: u32 = 23203;

/// What is shown as the address of a device on its bus: host memory has none.
pub(crate) const DEVICE_ADDRESS: &str = "0000:00:00";
/// What is shown as the name of a device.
pub(crate) const DEVICE_NAME: &str = "host memory";

/// A rank as the header lists it.
#[derive(Clone, Debug)]
pub(crate) struct ListedRank {
    /// The color of its group, by NCCL_TESTS_SPLIT.
    pub(crate) group: u32,
    /// The id of its process.
    pub(crate) pid: u32,
    /// The name of its host.
    pub(crate) host: String,
    /// The number shown as its device.
    pub(crate) device: u32,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct TableRow {
    /// The size in bytes.
    pub(crate) size: usize,
    /// Elements per block.
    pub(crate) count: usize,
    /// The element type.
    pub(crate) dtype: DType,
    /// The collective.
    pub(crate) operation: Operation,
    /// The reduction; None for a collective that does not reduce.
    pub(crate) op: Option<RedOp>,
    /// The root; None for a collective without one.
    pub(crate) root: Option<u32>,
    /// The measurement with two buffers.
    pub(crate) out_of_place: Option<Measurement>,
    /// The measurement with one buffer.
    pub(crate) in_place: Option<Measurement>,
    /// The least seconds that the machine needs; None unless the options ask for it.
    pub(crate) roof: Option<f64>,
}

/// The measurement in one placement, out of place or in place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    /// Seconds per call.
    pub(crate) seconds: f64,
    /// Seconds of processor time of the calling thread per call.
    pub(crate) cpu_seconds: f64,
    /// Algorithm bandwidth in bytes per second: size over time.
    pub(crate) algbw: f64,
    /// Bus bandwidth: the algorithm bandwidth times the bus factor.
    pub(crate) busbw: f64,
    /// The number of wrong elements and damaged guard bytes; None if nothing was checked.
    pub(crate) wrong: Option<u64>,
    /// Seconds of processor time of all processes for all timed calls.
    pub(crate) process_seconds: f64,
    /// The largest memory of one process in bytes.
    pub(crate) peak_bytes: u64,
    /// The times of single iterations.
    pub(crate) iterations: Option<Iterations>,
}

/// The memory of the processes in bytes: of each kind, that of the process with the most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryUse {
    /// What the initialization of its communicators has added.
    pub(crate) initialization: f64,
    /// Its send and receive buffers, whether touched or not.
    pub(crate) buffers: f64,
    /// What the calls have added.
    pub(crate) calls: f64,
}

/// The sums over all rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableSummary {
    /// The number of wrong elements and damaged guard bytes.
    pub(crate) wrong: u64,
    /// The sum of the bus bandwidths.
    busbw: f64,
    /// The number of measurements in that sum.
    placements: u64,
}

impl TableRow {
    /// The row for a rank's work, before it is measured.
    pub(crate) fn new(work: &RankWork) -> Self {
        let RankWork { count, dtype, operation, op, root, .. } = *work;
        let size = work.size_elements() * dtype.size();
        let (out_of_place, in_place, roof) = (None, None, None);
        Self { size, count, dtype, operation, op, root, out_of_place, in_place, roof }
    }

    /// What the column of reductions shows.
    pub(crate) fn reduction(&self) -> &'static str {
        self.op.map_or(self.operation.without_reduction(), RedOp::name)
    }

    /// The measurements of both placements.
    pub(crate) fn placements(&self) -> impl Iterator<Item = &Measurement> {
        self.out_of_place.iter().chain(&self.in_place)
    }
}

impl TableSummary {
    /// Adds a row.
    pub(crate) fn add(&mut self, row: &TableRow) {
        for measured in row.placements() {
            self.wrong += measured.wrong.unwrap_or(0);
            self.busbw += measured.busbw;
            self.placements += 1;
        }
    }

    /// The mean bus bandwidth in GB/s, over all rows and both placements.
    pub(crate) fn bandwidth(&self) -> f64 {
        self.busbw / self.placements.max(1) as f64 / 1e9
    }

    /// Whether the bandwidth is at least 0.9 of the wanted one; None if none is wanted.
    pub(crate) fn is_fast_enough(&self, options: &Options) -> Option<bool> {
        options.variables.min_bandwidth.map(|least| self.bandwidth() >= 0.9 * least)
    }

    /// Whether no value was wrong and the bandwidth is high enough.
    pub(crate) fn passed(&self, options: &Options) -> bool {
        self.wrong == 0 && self.is_fast_enough(options) != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::TestVariables;

    fn summary() -> TableSummary {
        let measured = |busbw, wrong| Some(Measurement { busbw, wrong, ..Measurement::default() });
        let row = TableRow {
            size: 8,
            count: 2,
            dtype: DType::Float32,
            operation: Operation::Broadcast,
            op: None,
            root: None,
            out_of_place: measured(1e9, Some(2)),
            in_place: measured(3e9, None),
            roof: None,
        };
        let mut summary = TableSummary::default();
        summary.add(&row);
        summary.add(&TableRow { in_place: None, out_of_place: measured(5e9, Some(0)), ..row });
        summary
    }

    #[test]
    fn the_mean_is_over_all_placements() {
        assert_eq!((summary().bandwidth(), summary().wrong), (3.0, 2));
        assert_eq!(TableSummary::default().bandwidth(), 0.0);
    }

    #[test]
    fn wrong_values_and_low_bandwidth_fail() {
        let options = |least| {
            let variables = TestVariables { min_bandwidth: least, ..TestVariables::default() };
            Options { variables, ..Options::default() }
        };
        assert!(!summary().passed(&options(None)));
        let right = TableSummary { wrong: 0, ..summary() };
        assert!(right.passed(&options(None)) && right.passed(&options(Some(3.3))));
        assert!(!right.passed(&options(Some(3.4))));
    }
}
