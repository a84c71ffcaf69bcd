//! A set of ranks that stays short when it is printed or sent, however many ranks it has.

use std::fmt;

/// Most ranges that a [`RankSet`] lists.
pub(crate) const MOST_RANGES: usize = 64;

/// A set of ranks. It lists the first [`ranges`](Self::ranges) of ranks, a limited number of them,
/// and counts all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSet {
    /// First and last rank of each listed range, ascending.
    pub(crate) ranges: Vec<(u32, u32)>,
    /// Number of ranks, those that are not listed included.
    pub(crate) count: u32,
}

impl RankSet {
    /// The set of these ranks, which must ascend.
    pub fn new(ranks: impl IntoIterator<Item = u32>) -> Self {
        let mut set = Self { ranges: Vec::new(), count: 0 };
        for rank in ranks {
            set.push(rank, rank);
        }
        set
    }

    /// Adds the ranks of `range` that are not in `present`. Both must ascend and lie above the
    /// ranks of the set.
    pub fn add_missing(
        &mut self,
        present: impl IntoIterator<Item = u32>,
        range: std::ops::Range<u32>,
    ) {
        let mut next = range.start;
        for rank in present {
            if rank > next {
                self.push(next, rank - 1);
            }
            next = rank + 1;
        }
        if next < range.end {
            self.push(next, range.end - 1);
        }
    }

    /// Number of ranks.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether the set has no ranks.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// First and last rank of each range that is listed.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    fn push(&mut self, first: u32, last: u32) {
        self.count += last - first + 1;
        let has_room = self.ranges.len() < MOST_RANGES;
        match self.ranges.last_mut() {
            Some(range) if range.1.checked_add(1) == Some(first) => range.1 = last,
            _ if has_room => self.ranges.push((first, last)),
            _ => {}
        }
    }
}

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.count == 1 { "rank " } else { "ranks " })?;
        let mut listed = 0;
        for (at, &(first, last)) in self.ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            listed += last - first + 1;
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        if listed < self.count { write!(f, " and {} more", self.count - listed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_printed_as_ranges() {
        let missing = |present: &[u32], nranks| {
            let mut set = RankSet::new([]);
            set.add_missing(present.iter().copied(), 0..nranks);
            set
        };
        assert_eq!(missing(&[1, 2, 5], 9).to_string(), "ranks 0, 3-4, 6-8");
        assert_eq!(missing(&[0, 2], 3).to_string(), "rank 1");
        assert!(missing(&[0, 1], 2).is_empty());
        let mut separate = missing(&[1], 2);
        separate.add_missing([], 4..4);
        separate.add_missing([7], 6..9);
        assert_eq!(separate.to_string(), "ranks 0, 6, 8");
        assert_eq!(RankSet::new([3, 4, 9]).to_string(), "ranks 3-4, 9");
        let every_second = RankSet::new((0..1000).map(|i| 2 * i));
        assert_eq!((every_second.len(), every_second.ranges().len()), (1000, MOST_RANGES));
        assert!(every_second.to_string().ends_with("and 936 more"));
    }
}
