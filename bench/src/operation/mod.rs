//! The collectives that can be measured, and how nccl-tests counts their sizes and bandwidths.
//!
//! * [`Operation`] - names, sizes, factors
//! * [`work`] - what one rank does: how much it sends and receives, and the expected result
//! * [`traffic`] - how much each rank sends to each, for alltoallv
//! * [`calls`] - the calls of the library

pub(crate) mod calls;
pub(crate) mod traffic;
pub(crate) mod work;

/// A collective that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Every rank gets the reduction of all.
    AllReduce,
    /// Every rank gets the blocks of all ranks.
    AllGather,
    /// Every rank gets its block of the reduction of all.
    ReduceScatter,
    /// Every rank gets the root's data.
    Broadcast,
    /// The root gets the reduction of all.
    Reduce,
    /// Every rank gets its block of every rank's data.
    AllToAll,
    /// As alltoall, with blocks of different sizes.
    AllToAllV,
    /// The root gets every rank's block.
    Gather,
    /// Every rank gets its block of the root's data.
    Scatter,
    /// Every rank sends to the next rank and receives from the one before.
    SendRecv,
    /// An all-gather by exchanges between pairs of ranks that differ in one bit.
    Hypercube,
}

/// Which of the two buffers holds one block for each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockLayout {
    /// Neither.
    Equal,
    /// The send buffer.
    WideSend,
    /// The receive buffer.
    WideRecv,
    /// Both.
    WideBoth,
}

impl Operation {
    /// All collectives that can be measured.
    pub(crate) const ALL: [Self; 11] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Broadcast,
        Self::Reduce,
        Self::AllToAll,
        Self::AllToAllV,
        Self::Gather,
        Self::Scatter,
        Self::SendRecv,
        Self::Hypercube,
    ];

    /// The name of nccl-tests' program, without `_perf`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::AllToAll => "alltoall",
            Self::AllToAllV => "alltoallv",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::SendRecv => "sendrecv",
            Self::Hypercube => "hypercube",
        }
    }

    /// The operation with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// Whether it reduces.
    pub(crate) const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::ReduceScatter | Self::Reduce)
    }

    /// Whether it has a root.
    pub(crate) const fn rooted(self) -> bool {
        matches!(self, Self::Broadcast | Self::Reduce | Self::Gather | Self::Scatter)
    }

    const fn layout(self) -> BlockLayout {
        match self {
            Self::AllReduce | Self::Broadcast | Self::Reduce | Self::SendRecv => BlockLayout::Equal,
            Self::ReduceScatter | Self::Scatter => BlockLayout::WideSend,
            Self::AllGather | Self::Gather | Self::Hypercube => BlockLayout::WideRecv,
            Self::AllToAll | Self::AllToAllV => BlockLayout::WideBoth,
        }
    }

    /// Whether its results in place, in one buffer, are checked. nccl-tests times the others
    /// without a check, because what a rank sends may be overwritten before.
    pub(crate) const fn checks_in_place(self) -> bool {
        !matches!(self, Self::AllToAll | Self::AllToAllV | Self::SendRecv)
    }

    /// What the column of reductions shows for a collective that has none.
    pub(crate) const fn without_reduction(self) -> &'static str {
        if matches!(self, Self::Hypercube) { "" } else { "none" }
    }

    /// Why `nranks` ranks cannot do it; None if they can.
    pub(crate) fn refuses(self, nranks: u32) -> Option<String> {
        let refused = self == Self::Hypercube && !nranks.is_power_of_two();
        refused.then(|| format!("nRanks {nranks} is not a power of 2, skipping"))
    }

    /// Elements per block for a size of `bytes`. It is rounded down to whole elements, and for
    /// collectives with one block for each rank to blocks of a multiple of 16 bytes.
    pub(crate) fn count(self, bytes: usize, element: usize, nranks: u32) -> usize {
        let elements = bytes / element;
        match self.layout() {
            BlockLayout::Equal => elements,
            _ => (elements / nranks as usize) & !(16 / element - 1),
        }
    }

    /// The size in the column of sizes, in elements, if all blocks are equal.
    pub(crate) fn size_elements(self, count: usize, nranks: u32) -> usize {
        if self.layout() == BlockLayout::Equal { count } else { count * nranks as usize }
    }

    /// How many of the `size` elements in the column of sizes the algorithm bandwidth counts.
    pub(crate) fn counted_elements(self, size: usize, nranks: u32) -> usize {
        // A rank's own block does not count here, although it does in the column of sizes.
        if self == Self::Hypercube { size / nranks as usize * (nranks as usize - 1) } else { size }
    }

    /// The factor from algorithm bandwidth to bus bandwidth, which is comparable with the bandwidth
    /// of a link, independent of the number of ranks.
    pub(crate) fn bus_factor(self, nranks: u32) -> f64 {
        let n = f64::from(nranks);
        match self {
            Self::AllReduce => 2.0 * (n - 1.0) / n,
            Self::Broadcast | Self::Reduce | Self::SendRecv | Self::Hypercube => 1.0,
            _ => (n - 1.0) / n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_nccl_tests() {
        assert_eq!(Operation::AllReduce.count(15, 4, 3), 3);
        assert_eq!(Operation::Broadcast.count(7, 8, 3), 0);
        assert_eq!(Operation::AllGather.count(1024, 4, 3), 84);
        for wide in ["all_gather", "reduce_scatter", "alltoall", "gather", "scatter", "hypercube"] {
            assert_eq!(Operation::named(wide).unwrap().size_elements(84, 3), 252);
        }
        for narrow in ["all_reduce", "broadcast", "reduce", "sendrecv"] {
            assert_eq!(Operation::named(narrow).unwrap().size_elements(84, 3), 84);
        }
        assert_eq!(Operation::Hypercube.counted_elements(400, 4), 300);
        assert_eq!(Operation::AllGather.counted_elements(400, 4), 400);
    }

    #[test]
    fn factors_are_those_of_nccl_tests() {
        let factors = Operation::ALL.map(|operation| operation.bus_factor(4));
        assert_eq!(factors, [1.5, 0.75, 0.75, 1.0, 1.0, 0.75, 0.75, 0.75, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn a_hypercube_needs_a_power_of_two() {
        assert_eq!(
            [1, 2, 3, 6, 8].map(|n| Operation::Hypercube.refuses(n).is_some()),
            [false, false, true, true, false]
        );
        assert_eq!(Operation::AllReduce.refuses(3), None);
    }
}
