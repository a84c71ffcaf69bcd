//! Ranks on a ring: the rank at a distance after or before another.

use crate::types::Rank;

/// The rank `distance` places after `rank`.
pub const fn after(rank: Rank, distance: u32, nranks: u32) -> Rank {
    ((rank as u64 + distance as u64) % nranks as u64) as Rank
}

/// The rank `distance` places before `rank`.
pub const fn before(rank: Rank, distance: u32, nranks: u32) -> Rank {
    after(rank, nranks - distance % nranks, nranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_undoes_after() {
        for distance in 0..12 {
            for rank in 0..5 {
                assert_eq!(before(after(rank, distance, 5), distance, 5), rank);
            }
        }
        assert_eq!((after(4, 1, 5), before(0, 1, 5)), (0, 4));
    }
}
