//! The circulant graph of repeated halving: the pattern of algorithms that take `ceil(log2 n)`
//! rounds and move the minimum of data at every rank count.
//!
//! *Offset* `i` at rank `r` is the block of rank `r + i` (all mod `n`). The *skips* are `s_0 = n`
//! and `s_k = ceil(s_(k-1) / 2)`, down to `s_q = 1`. To reduce, in round `k = 1..q` every rank
//! sends its partial sums of offsets `s_k..s_(k-1)` to the rank `s_k` above, where they are offsets
//! `0..s_(k-1) - s_k`; offsets `0..s_k` are left, in the end offset 0. To gather, the rounds run in
//! reverse: the lower offsets are sent to the rank `s_k` below.
//!
//! Source: J. L. Träff, "Optimal, Non-pipelined Reduce-scatter and Allreduce Algorithms" (2024); J.
//! Bruck et al., "Efficient algorithms for all-to-all communications in multiport message-passing
//! systems", IEEE TPDS 8 (1997).

/// The skips for a number of ranks.
#[derive(Clone, Copy, Debug)]
pub struct Circulant {
    /// The number of ranks, at least two.
    pub nranks: u32,
}

impl Circulant {
    /// The number of rounds, `q`.
    pub const fn rounds(self) -> u32 {
        self.nranks.next_power_of_two().ilog2()
    }

    /// `s_k`, for `k` up to the number of rounds: the distance of messages in round `k`, and the
    /// number of offsets that are left after it.
    pub const fn skip(self, k: u32) -> u32 {
        self.nranks.div_ceil(1 << k)
    }

    /// The number of offsets that are sent in round `k`, counted from 1.
    pub const fn moved(self, k: u32) -> u32 {
        self.skip(k - 1) - self.skip(k)
    }

    /// The round in which a rank sends offset `i > 0` to be reduced, or receives it when data is
    /// gathered.
    pub const fn round(self, i: u32) -> u32 {
        self.nranks.div_ceil(i).next_power_of_two().ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_repeated_halves() {
        for nranks in 2..3000 {
            let circulant = Circulant { nranks };
            let mut skip = nranks;
            for k in 1..=circulant.rounds() {
                assert_eq!(circulant.moved(k), skip / 2);
                let left = skip.div_ceil(2);
                assert!((left..skip).all(|i| circulant.round(i) == k));
                skip = left;
                assert_eq!(circulant.skip(k), skip);
            }
            assert_eq!(skip, 1);
            assert_eq!(
                (1..=circulant.rounds()).map(|k| circulant.moved(k)).sum::<u32>(),
                nranks - 1
            );
        }
    }
}
