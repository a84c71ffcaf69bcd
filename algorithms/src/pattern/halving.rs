//! Who holds what when aligned blocks of ranks that double in size reduce together, for any rank
//! count.
//!
//! There are as many chunks as ranks. A *block* is `2^k` aligned ranks `b..b+m`, the last one cut
//! short where the rank count is no power of two (`m < 2^k`). It holds the partial sum of its
//! members' contributions to every chunk, each at one member, the chunk's *holder*: with `q` the
//! least power of two not below `m`,
//!
//! > `b + c mod q` if that is a member, else `b + c mod q/2`.
//!
//! So the block of all ranks holds chunk `c` at rank `c`, a block of one rank holds all at it, and
//! a member `b + p` holds an arithmetic progression of chunks ([`Held`]): stride `q`, or `q/2` if
//! it stands in for a member that there is not.
//!
//! Two sibling blocks *join*: the lower one, `A`, has all its `2^k` members, the upper one, `B`,
//! has `m` of them. **The holder of a chunk in the joined block is its holder in `A` or its holder
//! in `B`**, so that one message per chunk makes a join: from the one that does not go on holding
//! it to the one that does. Proof, with `p = c mod 2^(k+1)`. If `p < 2^k`, the joined holder is
//! `b + p`: that of `A`. If `2^k <= p < 2^k + m`, it is `b + p`; in `B`, `c mod q = p - 2^k`, a
//! member: the same rank. Otherwise it stands in at `b + c mod 2^k`: that of `A`. A block without a
//! sibling waits for the next round; what it holds where depends on its members alone.
//!
//! At powers of two this is the exchange of recursive halving with the distances the other way
//! round, nearest first, which makes each reduction the canonical balanced tree. Source: R. Thakur,
//! R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH",
//! IJHPCA 19 (2005), section 4.3; the treatment of other rank counts is our own.

use crate::pattern::butterfly::rounds;
use crate::types::Rank;

/// The chunks that a rank holds for its block: `first, first + stride, …` below the rank count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    first: u32,
    stride: u32,
    nranks: u32,
}

impl Held {
    /// For its block of at most `2^k` ranks.
    fn new(k: u32, rank: Rank, nranks: u32) -> Self {
        let Block { first, members } = Block::of(k, rank, nranks);
        let (place, padded) = (rank - first, members.next_power_of_two());
        let half = padded / 2;
        let stands_in = place < half && place + half >= members;
        Self { first: place, stride: if stands_in { half } else { padded }, nranks }
    }

    /// How many they are, at least one.
    pub const fn count(self) -> u32 {
        (self.nranks - self.first).div_ceil(self.stride)
    }

    /// Number `index` of them, in ascending order.
    pub const fn chunk(self, index: u32) -> u32 {
        self.first + index * self.stride
    }

    /// Whether `chunk` is one of them.
    pub const fn contains(self, chunk: u32) -> bool {
        chunk >= self.first && (chunk - self.first).is_multiple_of(self.stride)
    }

    /// The number of `chunk`, which is one of them.
    pub const fn index(self, chunk: u32) -> u32 {
        (chunk - self.first) / self.stride
    }
}

/// Aligned ranks.
#[derive(Clone, Copy)]
struct Block {
    first: Rank,
    members: u32,
}

impl Block {
    fn of(k: u32, rank: Rank, nranks: u32) -> Self {
        let first = rank & !((1 << k) - 1);
        Self { first, members: (1 << k).min(nranks - first) }
    }

    /// Who holds `chunk`.
    fn holder(self, chunk: u32) -> Rank {
        let padded = self.members.next_power_of_two();
        let place = chunk % padded;
        self.first + if place < self.members { place } else { chunk % (padded / 2) }
    }
}

/// A rank's block of `2^k` ranks and its sibling become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The round.
    pub k: u32,
    /// What the rank holds before.
    pub before: Held,
    /// What it holds after, all of which was there before.
    pub after: Held,
    /// The sibling lies below: its partial sums are the left operands.
    pub sibling_is_lower: bool,
    sibling: Rank,
}

impl Join {
    /// The join of `rank` in round `k`, or None where its block has no sibling.
    pub fn new(k: u32, rank: Rank, nranks: u32) -> Option<Self> {
        let sibling = (rank & !((1 << k) - 1)) ^ (1 << k);
        (sibling < nranks).then(|| Self {
            k,
            before: Held::new(k, rank, nranks),
            after: Held::new(k + 1, rank, nranks),
            sibling_is_lower: sibling < rank,
            sibling,
        })
    }

    /// The rank that holds `chunk` in the sibling block: the other end of the message for it.
    pub fn peer(&self, chunk: u32) -> Rank {
        Block::of(self.k, self.sibling, self.before.nranks).holder(chunk)
    }

    /// How many chunks the rank gives away.
    pub const fn lost(&self) -> u32 {
        self.before.count() - self.after.count()
    }

    /// Number `index` of those, in ascending order.
    pub const fn lost_chunk(&self, index: u32) -> u32 {
        let (ratio, kept) = self.period();
        let (period, place) = (index / (ratio - 1), index % (ratio - 1));
        self.before.chunk(period * ratio + if place < kept { place } else { place + 1 })
    }

    /// The number of `chunk` among those, if it is one.
    pub const fn lost_index(&self, chunk: u32) -> u32 {
        let (ratio, kept) = self.period();
        let index = self.before.index(chunk);
        let (period, place) = (index / ratio, index % ratio);
        period * (ratio - 1) + if place < kept { place } else { place - 1 }
    }

    /// Of how many chunks held before one is held after, and which of them.
    const fn period(&self) -> (u32, u32) {
        let stride = self.before.stride;
        (self.after.stride / stride, (self.after.first - self.before.first) / stride)
    }
}

/// The joins of `rank`, from the nearest ranks to the farthest. At least one if there are two
/// ranks.
pub fn joins(rank: Rank, nranks: u32) -> impl DoubleEndedIterator<Item = Join> + Clone {
    (0..rounds(nranks)).filter_map(move |k| Join::new(k, rank, nranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> impl Iterator<Item = u32> {
        (1..80).chain([100, 127, 128, 129, 200, 255, 257])
    }

    #[test]
    fn what_is_held_is_where_the_holders_are() {
        for n in counts() {
            for k in 0..=rounds(n) {
                for rank in 0..n {
                    let held = Held::new(k, rank, n);
                    let block = Block::of(k, rank, n);
                    let chunks = (0..n).filter(|&c| block.holder(c) == rank);
                    assert!(chunks.clone().eq((0..held.count()).map(|i| held.chunk(i))));
                    assert!(chunks.clone().eq((0..n).filter(|&c| held.contains(c))));
                    assert!(chunks.map(|c| held.index(c)).eq(0..held.count()));
                }
            }
            assert!((0..n).all(|r| Held::new(rounds(n), r, n).count() == 1));
            assert!((0..n).all(|r| Held::new(rounds(n), r, n).chunk(0) == r));
        }
    }

    #[test]
    fn a_join_takes_one_message_per_chunk_between_the_two_holders() {
        for n in counts() {
            let mut messages = 0;
            for rank in 0..n {
                for join in joins(rank, n) {
                    let (before, after) = (join.before, join.after);
                    let lost = (0..n).filter(|&c| before.contains(c) && !after.contains(c));
                    assert!((0..n).all(|c| before.contains(c) || !after.contains(c)));
                    assert!(lost.clone().eq((0..join.lost()).map(|i| join.lost_chunk(i))));
                    assert!(lost.clone().map(|c| join.lost_index(c)).eq(0..join.lost()));
                    messages += join.lost();
                    for chunk in (0..n).filter(|&c| before.contains(c)) {
                        let peer = join.peer(chunk);
                        let back = Join::new(join.k, peer, n).expect("siblings meet");
                        assert!(back.before.contains(chunk) && back.peer(chunk) == rank);
                        assert_ne!(back.after.contains(chunk), after.contains(chunk));
                        assert_ne!(back.sibling_is_lower, join.sibling_is_lower);
                    }
                }
            }
            assert_eq!(messages, n * (n - 1));
        }
    }
}
