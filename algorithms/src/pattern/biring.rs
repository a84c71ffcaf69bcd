//! A ring that is used in both directions at once: what is sent to a rank, or from it, travels
//! along two arms of the ring.
//!
//! Upward, data moves to the next higher rank; the arm in that direction covers half of the other
//! ranks. The downward arm covers the rest, one rank less if their number is odd. So the farthest
//! rank is `ceil((n-1)/2)` hops away instead of `n-1`.

use crate::pattern::ring::{after, before};
use crate::schedule::Channel;
use crate::types::Rank;

/// A direction around the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingDirection {
    /// To the next higher rank.
    Up,
    /// To the next lower rank.
    Down,
}

impl RingDirection {
    /// The direction of lane `lane` in algorithms that have one lane for each direction.
    pub const fn of_lane(lane: u32) -> Self {
        if lane == 0 { Self::Up } else { Self::Down }
    }

    /// Its channel. The directions have different ones, since with two ranks both lead to the same
    /// peer.
    pub const fn channel(self) -> Channel {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }

    /// How many ranks are reached in this direction.
    pub const fn arm(self, nranks: u32) -> u32 {
        match self {
            Self::Up => nranks / 2,
            Self::Down => (nranks - 1) / 2,
        }
    }

    /// The rank `hops` further on.
    pub const fn ahead(self, rank: Rank, hops: u32, nranks: u32) -> Rank {
        match self {
            Self::Up => after(rank, hops, nranks),
            Self::Down => before(rank, hops, nranks),
        }
    }

    /// The rank `hops` back.
    pub const fn behind(self, rank: Rank, hops: u32, nranks: u32) -> Rank {
        self.ahead(rank, nranks - hops % nranks, nranks)
    }
}

/// The number of lanes that are needed: with two ranks, one direction reaches all.
pub const fn lanes(nranks: u32) -> u32 {
    if nranks > 2 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::RingDirection::{Down, Up};
    use super::*;

    #[test]
    fn the_two_arms_reach_every_other_rank_once() {
        for n in 2..40 {
            for rank in 0..n {
                let reached = [Up, Down]
                    .into_iter()
                    .flat_map(|d| (1..=d.arm(n)).map(move |hops| d.ahead(rank, hops, n)));
                let mut all: Vec<_> = reached.chain([rank]).collect();
                all.sort_unstable();
                assert_eq!(all, (0..n).collect::<Vec<_>>());
                assert_eq!(Up.behind(Up.ahead(rank, 3, n), 3, n), rank);
            }
            assert_eq!(lanes(n) == 2, Down.arm(n) > 0);
            assert_eq!(Up.arm(n), (n - 1).div_ceil(2));
        }
    }
}
