//! Parallel aggregated trees: one binomial tree for each rank, all the same up to rotation,
//! traversed in an order that needs no more memory than one message per link.
//!
//! *Offset* `o` at rank `r` is the block of rank `r - o` (all mod `n`) when data is gathered, and
//! of rank `r + o` when it is reduced. Offset 0 is the rank's own. The *parent* of another offset
//! is the offset without its lowest set bit, `2^k`. When data is gathered, offset `o` comes from
//! the rank `2^k` below, where it is the parent offset; when it is reduced, it goes to the rank
//! `2^k` above, where it is the parent offset. So the *children* of `o` are the `o + 2^j` below
//! `n`, for every `2^j` below its lowest bit. Hops to far ranks carry few blocks.
//!
//! To gather, every rank handles its offsets in ascending order, which is depth first: between the
//! step that sends on a link and the step in which the peer receives that message, no other step
//! sends on the link. One credit is enough at every rank count, and no block has to be stored in
//! order to be sent later. To reduce, the order is descending.
//!
//! Offsets with the same number of trailing zeros are on the same level of the trees. They have
//! their own lane, so that no level waits for one that is further from the leaves, and the lane has
//! its own channel for the messages between these offsets and their children, since a link is used
//! by one lane. There are four channels: lanes 1 to 3 have the offsets with 1 to 3 trailing zeros,
//! and lane 4 has those with more. Lane 0 has the odd offsets, the leaves.
//!
//! Source: S. Jeaugey, "PAT: a new algorithm for all-gather and reduce-scatter operations at scale"
//! (2025). What the paper aggregates in one message is here sent as several messages that follow
//! each other on a link. The lanes are our own.

use crate::schedule::Channel;
use crate::schedule::MAX_FAN;

/// The trees for a number of ranks.
#[derive(Clone, Copy, Debug)]
pub struct Pat {
    /// The number of ranks, at least two.
    pub nranks: u32,
}

/// One step for an offset, with some of its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetPart {
    /// The offset.
    pub offset: u32,
    /// The children are `offset + 2^j` for `j` in `from..to`.
    pub from: u32,
    /// See `from`.
    pub to: u32,
    /// It is the first part of the offset, which also has the parent or the rank's own block.
    pub first: bool,
    /// It is the last part of the offset.
    pub last: bool,
}

/// The number of lanes whose offsets have children; each has a channel.
const INNER: u32 = 4;
/// The number of children of one step: one operand is for the parent, the rank's own block or the
/// parts before.
const CHILDREN: u32 = MAX_FAN as u32 - 1;

impl Pat {
    /// `ceil(log2 n)`: the levels of a tree below its root.
    const fn levels(self) -> u32 {
        self.nranks.next_power_of_two().ilog2()
    }

    /// The number of lanes.
    pub fn lanes(self) -> u32 {
        1 + self.channels() as u32
    }

    /// The number of channels.
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

    /// The distance to the rank of the parent of `offset > 0`.
    pub const fn distance(self, offset: u32) -> u32 {
        1 << offset.trailing_zeros()
    }

    /// The number of parts of all offsets of `lane`, which are its steps.
    pub fn steps(self, lane: u32) -> u32 {
        self.parts_before(lane, self.offsets(lane))
    }

    /// Part number `index` of `lane`, by ascending offsets. O(log n).
    pub fn part(self, lane: u32, index: u32) -> OffsetPart {
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
        OffsetPart { offset, from, to, first: nth == 0, last: to == children }
    }

    /// The number of trailing zeros of an offset; offset 0 has one for each level.
    const fn zeros(self, offset: u32) -> u32 {
        if offset == 0 { self.levels() } else { offset.trailing_zeros() }
    }

    /// The number of children of an offset: those with the smallest distances exist.
    const fn children(self, offset: u32) -> u32 {
        match (self.nranks - 1 - offset).checked_ilog2() {
            Some(log) if log + 1 < self.zeros(offset) => log + 1,
            Some(_) => self.zeros(offset),
            None => 0,
        }
    }

    /// The number of offsets of a lane.
    fn offsets(self, lane: u32) -> u32 {
        if lane + 1 == self.lanes() {
            self.nranks.div_ceil(1 << lane)
        } else {
            (self.nranks - (1 << lane)).div_ceil(2 << lane)
        }
    }

    /// Offset number `nth` of a lane, ascending.
    fn offset(self, lane: u32, nth: u32) -> u32 {
        if lane + 1 == self.lanes() { nth << lane } else { (2 * nth + 1) << lane }
    }

    /// The number of parts of the first `nth` offsets of a lane: one each, and one more for every
    /// [`CHILDREN`] children beyond the first [`CHILDREN`].
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
                let mut former: Option<OffsetPart> = None;
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
