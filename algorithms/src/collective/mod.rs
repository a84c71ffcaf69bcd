//! The generators of schedules, one file for each algorithm and collective, and the table of all of
//! them.

pub mod all_gather;
pub mod all_reduce;
pub mod all_to_all;
pub mod broadcast;
pub mod gather;
pub mod reduce;
pub mod reduce_scatter;
pub mod scatter;

use crate::schedule::{Schedule, Step, StepTable, operand};
use crate::types::{Collective, Rank};

/// A named algorithm for one collective.
#[derive(Clone, Copy)]
pub struct Generator {
    /// The algorithm's name, as NCCL_ALGO and `maypole verify` take it.
    pub name: &'static str,
    /// The collective's name, see [`Collective::name`].
    pub collective: &'static str,
    build: fn(Collective, u32) -> Schedule,
}

impl Generator {
    /// A generator for a collective without a root.
    const fn new(
        name: &'static str,
        collective: &'static str,
        build: fn(Collective, u32) -> Schedule,
    ) -> Self {
        Self { name, collective, build }
    }

    /// The collective that it generates schedules for, with `root` where the collective has a root.
    pub fn collective_with_root(&self, root: Rank) -> Collective {
        Collective::from_name(self.collective, root).expect("tables name collectives that exist")
    }

    /// The schedule for `nranks >= 1`; a root is taken from `collective`.
    ///
    /// # Panics
    /// If `collective` is not the collective of this generator, or if `nranks` is 0.
    pub fn schedule(&self, collective: Collective, nranks: u32) -> Schedule {
        assert_eq!(collective.name(), self.collective, "the generator is for another collective");
        assert!(nranks > 0, "a communicator has at least one rank");
        (self.build)(collective, nranks)
    }
}

/// The root of a collective that has one.
fn root(collective: Collective) -> Rank {
    collective.root().expect("only generators of rooted collectives call this")
}

/// The generators of each collective. A new generator is added to the table in the `mod.rs` of its
/// collective.
const TABLES: [&[Generator]; 8] = [
    all_reduce::GENERATORS,
    reduce_scatter::GENERATORS,
    all_gather::GENERATORS,
    broadcast::GENERATORS,
    reduce::GENERATORS,
    all_to_all::GENERATORS,
    gather::GENERATORS,
    scatter::GENERATORS,
];

/// All generators, by collective.
pub fn all() -> impl Iterator<Item = &'static Generator> {
    TABLES.into_iter().flatten()
}

/// The generators for `collective`, in the order of their table.
pub fn generators(collective: Collective) -> impl Iterator<Item = &'static Generator> {
    all().filter(move |g| g.collective == collective.name())
}

/// The schedule for one rank: the output is the rank's own contribution.
fn single_rank(name: &'static str, collective: Collective) -> Schedule {
    let mut step = Step::new([operand::input(0)], [operand::output(0)]);
    step.finish = collective.reduces();
    Schedule::new(name, collective, 1, 1, StepTable(vec![vec![vec![step]]])).canonical()
}
