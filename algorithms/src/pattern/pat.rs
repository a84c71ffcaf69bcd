//! Parallel aggregated trees: one binomial tree for each rank, all the same up to rotation, walked
//! in an order that needs no more memory than one message per link.
//!
//! Call *offset* `o` at rank `r` the block of rank `r - o` (all mod `n`) when data is gathered, of
//! rank `r + o` when it is reduced. Offset 0 is the rank's own. The *parent* of another offset is
//! the one without its lowest bit set, `2^k`: when data is gathered, offset `o` comes from the rank
//! `2^k` below, where it is the parent; when it is reduced, it goes to the rank `2^k` above,
//! likewise. So the *children* of `o` are `o + 2^j` below `n`, for every `2^j` below its lowest
//! bit. Far hops carry few blocks.
//!
//! To gather, every rank takes its offsets in ascending order, which is depth first: from the one
//! in which it sends on a link to the one in which its peer takes that message there is no other
//! that sends on the link. One credit is enough, whatever the rank count; no block waits in a
//! rank's memory to be sent later. To reduce, the same in descending order.
//!
//! Offsets with the same number of trailing zeros are on the same level of the trees. They get a
//! lane of their own, so that no level waits for one further from the leaves, and their lane a
//! channel of its own for the messages between them and their children, since a link is used by one
//! lane. There are four channels: lanes 1 to 3 have the offsets with as many trailing zeros and
//! lane 4 has all the others. Lane 0 has the odd offsets, the leaves.
//!
//! Source: S. Jeaugey, "PAT: a new algorithm for all-gather and reduce-scatter operations at scale"
//! (2025). What it aggregates in one message are here messages that follow each other on a link.
//! The lanes are our own.

use crate::schedule::Channel;
use crate::schedule::MAX_FAN;

/// The trees of a number of ranks.
#[derive(Clone, Copy, Debug)]
pub struct Pat {
    /// How many ranks, at least two.
    pub nranks: u32,
}

/// A part of what is to be done for an offset: with it go some of its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The offset.
    pub offset: u32,
    /// The children are `offset + 2^j` for `j` from here
    pub from: u32,
    /// to below here.
    pub to: u32,
    /// It is the first part, which has the parent or the own block as well.
    pub first: bool,
    /// It is the last one.
    pub last: bool,
}

/// Lanes that have children, each with a channel.
const INNER: u32 = 4;
/// Children that go with one step: a place is for the parent, the own block or the parts before.
const CHILDREN: u32 = MAX_FAN as u32 - 1;

impl Pat {
    /// `ceil(log2 n)`: the levels of a tree below its root.
    const fn levels(self) -> u32 {
        self.nranks.next_power_of_two().ilog2()
    }

    /// How many lanes there are.
    pub fn lanes(self) -> u32 {
        1 + self.channels() as u32
    }

    /// How many channels are used.
    pub fn channels(self) -> Channel {
        self.levels().min(INNER) as Channel
    }

    /// The lane of an offset.
    pub fn lane(self, offset: u32) -> u32 {
        self.zeros(offset).min(self.lanes() - 1)
    }

    /// The channel of the messages between an offset and its children.
    pub fn channel(self, offset: u32) -> Channel {
        self.lane(offset) as Channel - 1
    }

    /// How far the parent of `offset > 0` is.
    pub const fn distance(self, offset: u32) -> u32 {
        1 << offset.trailing_zeros()
    }

    /// How many parts there are, of all offsets of `lane`.
    pub fn steps(self, lane: u32) -> u32 {
        self.parts_before(lane, self.offsets(lane))
    }

    /// Part `index` of those of `lane`, by ascending offsets. O(log n).
    pub fn part(self, lane: u32, index: u32) -> Part {
        let (mut low, mut high) = (0, self.offsets(lane));
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.parts_before(lane, middle) <= index {
                low = middle;
            } else {
                high = middle;
            }
        }
        let offset = self.offset(lane, low);
        let (nth, children) = (index - self.parts_before(lane, low), self.children(offset));
        let from = nth * CHILDREN;
        let to = (from + CHILDREN).min(children);
        Part { offset, from, to, first: nth == 0, last: to == children }
    }

    /// Trailing zeros; the own block has one for each level.
    const fn zeros(self, offset: u32) -> u32 {
        if offset == 0 { self.levels() } else { offset.trailing_zeros() }
    }

    /// How many children an offset has: those of the least distances.
    const fn children(self, offset: u32) -> u32 {
        match (self.nranks - 1 - offset).checked_ilog2() {
            Some(log) if log + 1 < self.zeros(offset) => log + 1,
            Some(_) => self.zeros(offset),
            None => 0,
        }
    }

    /// How many offsets a lane has.
    fn offsets(self, lane: u32) -> u32 {
        if lane + 1 == self.lanes() {
            self.nranks.div_ceil(1 << lane)
        } else {
            (self.nranks - (1 << lane)).div_ceil(2 << lane)
        }
    }

    /// Number `nth` of the offsets of a lane, ascending.
    fn offset(self, lane: u32, nth: u32) -> u32 {
        if lane + 1 == self.lanes() { nth << lane } else { (2 * nth + 1) << lane }
    }

    /// How many parts the first `nth` offsets of a lane have: one each, and one more for every
    /// [`CHILDREN`] children beyond the first.
    fn parts_before(self, lane: u32, nth: u32) -> u32 {
        if lane + 1 < self.lanes() || nth == 0 {
            return nth;
        }
        // Offsets with more than `full` children are multiples of 2^(full+1) (0 among them) with
        // 2^full further offsets behind them.
        let below = (nth - 1) << lane;
        let more = (1..).map(|i| i * CHILDREN).take_while(|full| *full < self.levels());
        let more = more.map(|full| match (self.nranks - 1).checked_sub(1 << full) {
            Some(end) => (below.min(end) >> (full + 1)) + 1,
            None => 0,
        });
        nth + more.sum::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_is_in_one_lane_with_all_its_children() {
        for nranks in (2..300).chain([511, 512, 513, 640, 1000, 100_003]) {
            let pat = Pat { nranks };
            let mut seen = vec![0; nranks as usize];
            let mut reached = 0;
            for lane in 0..pat.lanes() {
                let mut former: Option<Part> = None;
                for index in 0..pat.steps(lane) {
                    let part = pat.part(lane, index);
                    assert_eq!(pat.lane(part.offset), lane);
                    assert_eq!(part.first, former.is_none_or(|f| f.last), "{nranks}: {part:?}");
                    if let Some(former) = former {
                        let in_order = if part.first {
                            former.offset < part.offset
                        } else {
                            former.offset == part.offset && former.to == part.from
                        };
                        assert!(in_order, "{nranks}: {former:?} {part:?}");
                    }
                    assert!(part.to - part.from < MAX_FAN as u32);
                    for j in part.from..part.to {
                        let child = part.offset + (1 << j);
                        assert!(child < nranks && pat.distance(child) == 1 << j);
                        reached += 1;
                    }
                    seen[part.offset as usize] += u32::from(part.last);
                    former = Some(part);
                }
                assert!(former.is_some_and(|f| f.last));
            }
            assert!(seen.iter().all(|&times| times == 1), "{nranks}");
            assert_eq!(reached, nranks - 1);
        }
    }
}
