//! The schedules that `maypole verify --all` and the tests prove in full. Both use this list, so
//! that what is true of one is true of the other.
//!
//! * [`small`]: every generator of the table at every rank count of [`RANKS`], rooted ones from
//!   their first and last rank
//! * [`large`]: every generator at the rank counts of [`LARGE`], among them a power of two and the
//!   number below it
//! * [`hierarchies()`]: hierarchies over groupings of many shapes
//!
//! [`uneven_example()`] is not in the list: it is a schedule written by hand that tests of several
//! crates run.

mod hierarchies;
mod uneven_example;

pub use hierarchies::hierarchies;
pub use uneven_example::uneven_example;

use std::ops::RangeInclusive;

use crate::collective::{Generator, all};
use crate::schedule::Schedule;
use crate::types::Rank;

/// The rank counts at which every generator is proved.
pub const RANKS: RangeInclusive<u32> = 2..=64;

/// Larger rank counts at which every generator is proved.
pub const LARGE: [u32; 4] = [100, 128, 255, 256];

/// The schedules of `generator` for `nranks` ranks: one for each of `roots` if its collective has a
/// root, else one.
pub fn schedules_of(generator: &Generator, nranks: u32, roots: &[Rank]) -> Vec<Schedule> {
    let mut collectives: Vec<_> =
        roots.iter().map(|&root| generator.collective_with_root(root)).collect();
    collectives.dedup();
    collectives.into_iter().map(|collective| generator.schedule(collective, nranks)).collect()
}

/// Every generator at these rank counts; rooted ones from the first and the last rank.
pub fn small(ranks: RangeInclusive<u32>) -> impl Iterator<Item = Schedule> {
    all().flat_map(move |generator| {
        ranks.clone().flat_map(|nranks| schedules_of(generator, nranks, &[0, nranks - 1]))
    })
}

/// Every generator at the larger rank counts; rooted ones from the last rank.
pub fn large() -> impl Iterator<Item = Schedule> {
    all().flat_map(|generator| LARGE.into_iter().flat_map(|n| schedules_of(generator, n, &[n - 1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generator_is_listed_at_every_rank_count() {
        for generator in all() {
            let named = |s: &Schedule| {
                (s.name, s.collective.name()) == (generator.name, generator.collective)
            };
            let rooted = generator.collective_with_root(0).root().is_some();
            let count = small(RANKS).filter(named).count();
            assert_eq!(count, if rooted { 2 * 63 } else { 63 }, "{}", generator.name);
            assert_eq!(large().filter(named).count(), 4, "{}", generator.name);
        }
    }
}
