//! The distribution of partial sums over ranks when aligned blocks of ranks that double in size
//! reduce together, for any rank count.
//!
//! There are as many chunks as ranks. A *block* is `2^k` aligned ranks `b..b+m`; the last one is
//! short if the rank count is not a power of two (`m < 2^k`). It holds the partial sum of its
//! members' contributions to every chunk, each at one member, the *holder* of the chunk. With `q`
//! the smallest power of two that is not less than `m`, the holder is
//!
//! > `b + c mod q` if that is a member, else `b + c mod q/2`.
//!
//! So the block of all ranks holds chunk `c` at rank `c`, a block of one rank holds all chunks, and
//! a member `b + p` holds an arithmetic progression of chunks ([`HeldChunks`]): its stride is `q`,
//! or `q/2` if the rank stands in for a member that does not exist.
//!
//! Two sibling blocks *join*: the lower one, `A`, has all its `2^k` members, the upper one, `B`,
//! has `m`. **The holder of a chunk in the joined block is its holder in `A` or its holder in
//! `B`**, so one message per chunk makes a join: from the one that stops holding it to the one that
//! goes on. Proof, with `p = c mod 2^(k+1)`. If `p < 2^k`, the joined holder is `b + p`: that of
//! `A`. If `2^k <= p < 2^k + m`, it is `b + p`; in `B`, `c mod q = p - 2^k`, which is a member: the
//! same rank. Otherwise the holder is the stand-in `b + c mod 2^k`: that of `A`. A block without a
//! sibling waits for the next round; what it holds where depends on its members alone.
//!
//! At powers of two this is the exchange of recursive halving with the distances in reverse order,
//! nearest first, which makes each reduction the canonical balanced tree. Source: R. Thakur, R.
//! Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA
//! 19 (2005), section 4.3; the treatment of other rank counts is our own.

use crate::pattern::butterfly::rounds;
use crate::types::Rank;

/// The chunks that a rank holds for its block: `first, first + stride, …` below the rank count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldChunks {
    first: u32,
    stride: u32,
    nranks: u32,
}

impl HeldChunks {
    /// The chunks that `rank` holds for its block of at most `2^k` ranks.
    fn new(k: u32, rank: Rank, nranks: u32) -> Self {
        let RankBlock { first, members } = RankBlock::containing(k, rank, nranks);
        let (place, padded) = (rank - first, members.next_power_of_two());
        let half = padded / 2;
        let stands_in = place < half && place + half >= members;
        Self { first: place, stride: if stands_in { half } else { padded }, nranks }
    }

    /// The number of chunks, at least one.
    pub const fn count(self) -> u32 {
        (self.nranks - self.first).div_ceil(self.stride)
    }

    /// Chunk number `index`, in ascending order.
    pub const fn chunk(self, index: u32) -> u32 {
        self.first + index * self.stride
    }

    /// Whether `chunk` is one of the chunks.
    pub const fn contains(self, chunk: u32) -> bool {
        chunk >= self.first && (chunk - self.first).is_multiple_of(self.stride)
    }

    /// The number of `chunk`, which is one of the chunks.
    pub const fn index(self, chunk: u32) -> u32 {
        (chunk - self.first) / self.stride
    }
}

/// A block of aligned ranks.
#[derive(Clone, Copy)]
struct RankBlock {
    first: Rank,
    members: u32,
}

impl RankBlock {
    fn containing(k: u32, rank: Rank, nranks: u32) -> Self {
        let first = rank & !((1 << k) - 1);
        Self { first, members: (1 << k).min(nranks - first) }
    }

    /// The rank that holds `chunk`.
    fn holder(self, chunk: u32) -> Rank {
        let padded = self.members.next_power_of_two();
        let place = chunk % padded;
        self.first + if place < self.members { place } else { chunk % (padded / 2) }
    }
}

/// The join of a rank's block of `2^k` ranks with its sibling, as the rank takes part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJoin {
    /// The round.
    pub k: u32,
    /// The chunks that the rank holds before the join.
    pub before: HeldChunks,
    /// The chunks that it holds after the join, a subset of those before.
    pub after: HeldChunks,
    /// The sibling has the lower ranks, so its partial sums are the left operands.
    pub sibling_is_lower: bool,
    sibling: Rank,
}

impl BlockJoin {
    /// The join of `rank` in round `k`, or None where its block has no sibling.
    pub fn new(k: u32, rank: Rank, nranks: u32) -> Option<Self> {
        let sibling = (rank & !((1 << k) - 1)) ^ (1 << k);
        (sibling < nranks).then(|| Self {
            k,
            before: HeldChunks::new(k, rank, nranks),
            after: HeldChunks::new(k + 1, rank, nranks),
            sibling_is_lower: sibling < rank,
            sibling,
        })
    }

    /// The rank that holds `chunk` in the sibling block: the other end of the message for it.
    pub fn peer(&self, chunk: u32) -> Rank {
        RankBlock::containing(self.k, self.sibling, self.before.nranks).holder(chunk)
    }

    /// The number of chunks that the rank sends away.
    pub const fn lost(&self) -> u32 {
        self.before.count() - self.after.count()
    }

    /// Chunk number `index` of those that it sends away, in ascending order.
    pub const fn lost_chunk(&self, index: u32) -> u32 {
        let (ratio, kept) = self.period();
        let (period, place) = (index / (ratio - 1), index % (ratio - 1));
        self.before.chunk(period * ratio + if place < kept { place } else { place + 1 })
    }

    /// The number of `chunk` among those that it sends away, of which it is one.
    pub const fn lost_index(&self, chunk: u32) -> u32 {
        let (ratio, kept) = self.period();
        let index = self.before.index(chunk);
        let (period, place) = (index / ratio, index % ratio);
        period * (ratio - 1) + if place < kept { place } else { place - 1 }
    }

    /// One of how many chunks that were held before is held after, and which one.
    const fn period(&self) -> (u32, u32) {
        let stride = self.before.stride;
        (self.after.stride / stride, (self.after.first - self.before.first) / stride)
    }
}

/// The joins of `rank`, from the nearest ranks to the farthest. At least one if there are two
/// ranks.
pub fn joins(rank: Rank, nranks: u32) -> impl DoubleEndedIterator<Item = BlockJoin> + Clone {
    (0..rounds(nranks)).filter_map(move |k| BlockJoin::new(k, rank, nranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> impl Iterator<Item = u32> {
        (1..80).chain([100, 127, 128, 129, 200, 255, 257])
    }

    #[test]
    fn held_chunks_agree_with_the_holders() {
        for n in counts() {
            for k in 0..=rounds(n) {
                for rank in 0..n {
                    let held = HeldChunks::new(k, rank, n);
                    let block = RankBlock::containing(k, rank, n);
                    let chunks = (0..n).filter(|&c| block.holder(c) == rank);
                    assert!(chunks.clone().eq((0..held.count()).map(|i| held.chunk(i))));
                    assert!(chunks.clone().eq((0..n).filter(|&c| held.contains(c))));
                    assert!(chunks.map(|c| held.index(c)).eq(0..held.count()));
                }
            }
            assert!((0..n).all(|r| HeldChunks::new(rounds(n), r, n).count() == 1));
            assert!((0..n).all(|r| HeldChunks::new(rounds(n), r, n).chunk(0) == r));
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
                        let back = BlockJoin::new(join.k, peer, n).expect("siblings meet");
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
