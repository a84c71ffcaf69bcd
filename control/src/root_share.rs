//! How the ranks are divided between several bootstrap roots.
//!
//! As in NCCL, each root gets a block of consecutive ranks, and blocks differ in size by one at
//! most; so unique ids that were made on every n-th host have their roots near their ranks. Each
//! rank asks the root of its block where its parent is. So a root must know the ranks of its block
//! and their parents, which are half as many. Rank 0 registers at all roots and stays until all
//! ranks have joined: a failure that one root knows of reaches through rank 0 the ranks that wait
//! at another root.

use std::ops::Range;

/// Which of several roots a root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootShare {
    /// The number of the root.
    pub index: u32,
    /// The number of roots.
    pub count: u32,
    /// A hash of all unique ids in their order.
    pub fingerprint: u64,
}

impl RootShare {
    /// The ranks that ask this root where their parent is: its block.
    pub fn ranks(self, nranks: u32) -> Range<u32> {
        let (nranks, count) = (u64::from(nranks), u64::from(self.count));
        // The first `nranks % count` blocks have one rank more.
        let start = |index: u64| (index * (nranks / count) + index.min(nranks % count)) as u32;
        start(self.index.into())..start(u64::from(self.index) + 1)
    }

    /// Whether the rank is in the block of this root.
    pub fn serves(self, rank: u32, nranks: u32) -> bool {
        self.ranks(nranks).contains(&rank)
    }

    /// The ranks that register at this root: rank 0, the parents of its block, and its block. The
    /// ranges ascend; some may be empty.
    pub fn visitors(self, nranks: u32) -> [Range<u32>; 3] {
        let own = self.ranks(nranks);
        // The parents of consecutive ranks are consecutive too.
        let first = own.start.max(1);
        let parents = if first < own.end { (first - 1) / 2..(own.end - 2) / 2 + 1 } else { 0..0 };
        let range = |start: u32, end: u32| start..end.max(start);
        let parents = range(parents.start.max(1), parents.end.min(own.start));
        [0..1, parents, range(first, own.end)]
    }

    /// The number of ranks that register at this root.
    pub fn expected(self, nranks: u32) -> usize {
        self.visitors(nranks).iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether the rank registers at this root.
    pub fn expects(self, rank: u32, nranks: u32) -> bool {
        self.visitors(nranks).iter().any(|range| range.contains(&rank))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree_shape::children;
    use super::*;

    #[test]
    fn ranks_are_divided_evenly_and_in_order() {
        for nranks in 1..60 {
            for count in 1..=nranks {
                let shares = (0..count).map(|index| RootShare { index, count, fingerprint: 0 });
                let mut next = 0;
                for share in shares {
                    let ranks = share.ranks(nranks);
                    assert_eq!(ranks.start, next);
                    assert!(
                        [nranks / count, nranks.div_ceil(count)].contains(&(ranks.len() as u32))
                    );
                    next = ranks.end;
                    let served = |rank| share.serves(rank, nranks);
                    let comes =
                        |rank| rank == 0 || served(rank) || children(rank, nranks).any(served);
                    let visitors: Vec<u32> = share.visitors(nranks).into_iter().flatten().collect();
                    assert_eq!(visitors, (0..nranks).filter(|r| comes(*r)).collect::<Vec<_>>());
                    assert_eq!(visitors.len(), share.expected(nranks));
                    // The block, half as many parents, one more at each end, and rank 0.
                    let bound = nranks.div_ceil(count) as usize * 3 / 2 + 3;
                    assert!(visitors.len() <= bound, "{nranks} {count}");
                }
                assert_eq!(next, nranks);
            }
        }
        let block = |index| RootShare { index, count: 3, fingerprint: 0 }.ranks(8);
        assert_eq!([block(0), block(1), block(2)], [0..3, 3..6, 6..8]);
    }
}
