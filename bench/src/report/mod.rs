//! What is said of the measurements: the table as nccl-tests prints it, JSON, a picture.

pub(crate) mod footer;
pub(crate) mod header;
pub(crate) mod iterations;
pub(crate) mod json;
pub(crate) mod number;
pub(crate) mod plot;
pub(crate) mod table;

use maypole_algorithms::{DType, RedOp};

use crate::operation::work::Work;
use crate::options::Options;
use iterations::Iterations;

/// The version of NCCL whose interface the library has.
pub(crate) const NCCL_VERSION: u32 = 23203;

/// A rank, as the header shows it.
#[derive(Clone, Debug)]
pub(crate) struct Participant {
    /// The group of NCCL_TESTS_SPLIT.
    pub(crate) group: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// Its host.
    pub(crate) host: String,
    /// The number of its device.
    pub(crate) device: u32,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Bytes.
    pub(crate) size: usize,
    /// Elements per block.
    pub(crate) count: usize,
    /// The element type.
    pub(crate) dtype: DType,
    /// The reduction; None where there is none.
    pub(crate) op: Option<RedOp>,
    /// The root; None where there is none.
    pub(crate) root: Option<u32>,
    /// Measured with two buffers.
    pub(crate) out_of_place: Option<Measured>,
    /// Measured with one buffer; None where that is not possible.
    pub(crate) in_place: Option<Measured>,
    /// Seconds that the machine needs at least.
    pub(crate) roof: Option<f64>,
}

/// One of the two placements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Seconds per call.
    pub(crate) seconds: f64,
    /// Seconds per call of the calling thread's processor.
    pub(crate) cpu_seconds: f64,
    /// Bytes per second, by the size of the operation.
    pub(crate) algbw: f64,
    /// The same times the bus factor.
    pub(crate) busbw: f64,
    /// Elements that were wrong; None if nothing was checked.
    pub(crate) wrong: Option<u64>,
    /// Seconds of all processors of all processes, for all timed calls.
    pub(crate) process_seconds: f64,
    /// The largest memory of a process, in bytes.
    pub(crate) peak_bytes: u64,
    /// What single iterations took.
    pub(crate) iterations: Option<Iterations>,
}

/// What all processes use, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Before there was a rank.
    pub(crate) program: f64,
    /// In the buffers that are sent and received.
    pub(crate) buffers: f64,
    /// In all.
    pub(crate) all: f64,
}

/// What the lines say together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// Elements that were wrong.
    pub(crate) wrong: u64,
    busbw: f64,
    placements: u64,
}

impl Row {
    /// The line for a rank's work, nothing measured yet.
    pub(crate) fn new(work: &Work) -> Self {
        let Work { count, dtype, op, root, .. } = *work;
        let size = work.size_elements() * dtype.size();
        Self { size, count, dtype, op, root, out_of_place: None, in_place: None, roof: None }
    }

    /// What was measured, placement by placement.
    pub(crate) fn placements(&self) -> impl Iterator<Item = &Measured> {
        self.out_of_place.iter().chain(&self.in_place)
    }
}

impl Summary {
    /// One more line.
    pub(crate) fn add(&mut self, row: &Row) {
        for measured in row.placements() {
            self.wrong += measured.wrong.unwrap_or(0);
            self.busbw += measured.busbw;
            self.placements += 1;
        }
    }

    /// The mean bus bandwidth in GB/s, over all lines and both placements.
    pub(crate) fn bandwidth(&self) -> f64 {
        self.busbw / self.placements.max(1) as f64 / 1e9
    }

    /// True if the bandwidth is as high as wanted; None if nothing is wanted.
    pub(crate) fn fast(&self, options: &Options) -> Option<bool> {
        options.variables.min_bandwidth.map(|least| self.bandwidth() >= 0.9 * least)
    }

    /// True if nothing was wrong and the bandwidth is as high as wanted.
    pub(crate) fn fine(&self, options: &Options) -> bool {
        self.wrong == 0 && self.fast(options) != Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Variables;

    fn summary() -> Summary {
        let measured = |busbw, wrong| Some(Measured { busbw, wrong, ..Measured::default() });
        let row = Row {
            size: 8,
            count: 2,
            dtype: DType::Float32,
            op: None,
            root: None,
            out_of_place: measured(1e9, Some(2)),
            in_place: measured(3e9, None),
            roof: None,
        };
        let mut summary = Summary::default();
        summary.add(&row);
        summary.add(&Row { in_place: None, out_of_place: measured(5e9, Some(0)), ..row });
        summary
    }

    #[test]
    fn the_mean_is_over_all_placements() {
        assert_eq!((summary().bandwidth(), summary().wrong), (3.0, 2));
        assert_eq!(Summary::default().bandwidth(), 0.0);
    }

    #[test]
    fn wrong_values_and_low_bandwidth_are_not_fine() {
        let options = |least| {
            let variables = Variables { min_bandwidth: least, ..Variables::default() };
            Options { variables, ..Options::default() }
        };
        assert!(!summary().fine(&options(None)));
        let right = Summary { wrong: 0, ..summary() };
        assert!(right.fine(&options(None)) && right.fine(&options(Some(3.3))));
        assert!(!right.fine(&options(Some(3.4))));
    }
}
