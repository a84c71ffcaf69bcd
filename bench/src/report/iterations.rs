//! Statistics of the times of single iterations.

/// Seconds per call of each iteration, in its slowest rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Iterations {
    /// All iterations, in their order.
    pub(crate) all: Vec<f64>,
    /// The same for each process, in its slowest rank.
    pub(crate) processes: Vec<Vec<f64>>,
    /// The iterations that count, shortest first.
    sorted: Vec<f64>,
}

impl Iterations {
    /// From the times of each rank, of which `per_process` are in each process. The first `skip`
    /// iterations do not count.
    pub(crate) fn new(ranks: &[Vec<f64>], per_process: usize, skip: usize) -> Self {
        let len = ranks.iter().map(Vec::len).min().unwrap_or(0);
        let slowest = |ranks: &[Vec<f64>]| -> Vec<f64> {
            let of = |i: usize| ranks.iter().map(|rank| rank[i]).fold(0.0, f64::max);
            (0..len).map(of).collect()
        };
        let all = slowest(ranks);
        let processes = ranks.chunks(per_process.max(1)).map(slowest).collect();
        let mut sorted = all[skip.min(len)..].to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { all, processes, sorted }
    }

    /// The middle of the sorted times; of an even number the later of two, as in nccl-tests.
    pub(crate) fn median(&self) -> f64 {
        self.sorted.get(self.sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// The shortest.
    pub(crate) fn min(&self) -> f64 {
        self.sorted.first().copied().unwrap_or(0.0)
    }

    /// The longest.
    pub(crate) fn max(&self) -> f64 {
        self.sorted.last().copied().unwrap_or(0.0)
    }

    /// The mean.
    pub(crate) fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len().max(1) as f64
    }

    /// The time that this percentage of the iterations does not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    /// The standard deviation.
    pub(crate) fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.sorted.iter().map(|time| (time - mean).powi(2)).sum::<f64>();
        (squares / self.sorted.len().max(1) as f64).sqrt()
    }

    /// The standard deviation in percent of the mean.
    pub(crate) fn variation(&self) -> f64 {
        let mean = self.mean();
        if mean > 0.0 { self.deviation() / mean * 100.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_counts() {
        let ranks = [vec![9.0, 1.0, 4.0], vec![2.0, 3.0, 2.0]];
        let iterations = Iterations::new(&ranks, 1, 1);
        assert_eq!(iterations.processes, ranks);
        assert_eq!(Iterations::new(&ranks, 2, 1).processes, [[9.0, 3.0, 4.0]]);
        assert_eq!(iterations.all, [9.0, 3.0, 4.0]);
        assert_eq!((iterations.min(), iterations.max(), iterations.mean()), (3.0, 4.0, 3.5));
        assert_eq!(iterations.deviation(), 0.5);
    }

    #[test]
    fn percentiles_are_measured_values() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        let iterations = Iterations::new(&[times], 1, 0);
        assert_eq!(
            [50, 95, 99, 100].map(|p| iterations.percentile(p)),
            [100.0, 190.0, 198.0, 200.0]
        );
        assert_eq!((iterations.median(), Iterations::new(&[], 1, 0).median()), (101.0, 0.0));
        assert_eq!(Iterations::new(&[vec![7.0]], 1, 0).percentile(99), 7.0);
        assert_eq!(Iterations::new(&[], 1, 0).percentile(99), 0.0);
    }
}
