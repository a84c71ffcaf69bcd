//! What is moved: the generators of schedules, one file each, and the table of them all.

pub mod all_gather;
pub mod all_reduce;
pub mod broadcast;
pub mod reduce_scatter;

use crate::schedule::{Schedule, Step, Table, operand};
use crate::types::{Collective, Rank};

/// A named algorithm for one kind of collective.
#[derive(Clone, Copy)]
pub struct Generator {
    /// The algorithm's name, as NCCL_ALGO and `maypole verify` take it.
    pub name: &'static str,
    /// The collective's name, see [`Collective::name`].
    pub collective: &'static str,
    build: fn(Collective, u32) -> Schedule,
}

impl Generator {
    /// The schedule for `nranks >= 1`; a root is taken from `collective`.
    ///
    /// # Panics
    /// If `collective` is of another kind than this generator's, or nranks is 0.
    pub fn schedule(&self, collective: Collective, nranks: u32) -> Schedule {
        assert_eq!(collective.name(), self.collective, "a generator of another collective");
        assert!(nranks > 0, "a communicator has at least one rank");
        (self.build)(collective, nranks)
    }
}

/// The root of a collective that has one.
fn root(collective: Collective) -> Rank {
    collective.root().expect("only generators of rooted collectives ask")
}

/// All generators. A new one is added here, and nowhere else.
pub const GENERATORS: &[Generator] = &[
    Generator {
        name: "ring",
        collective: "all_reduce",
        build: |_, n| all_reduce::ring::schedule(n),
    },
    Generator {
        name: "oneshot",
        collective: "all_reduce",
        build: |_, n| all_reduce::one_shot::schedule(n),
    },
    Generator {
        name: "twoshot",
        collective: "all_reduce",
        build: |_, n| all_reduce::two_shot::schedule(n),
    },
    Generator {
        name: "doubling",
        collective: "all_reduce",
        build: |_, n| all_reduce::recursive_doubling::schedule(n),
    },
    Generator {
        name: "tree",
        collective: "all_reduce",
        build: |_, n| all_reduce::double_tree::schedule(n),
    },
    Generator {
        name: "direct",
        collective: "all_gather",
        build: |_, n| all_gather::direct::schedule(n),
    },
    Generator { name: "pat", collective: "all_gather", build: |_, n| all_gather::pat::schedule(n) },
    Generator {
        name: "direct",
        collective: "reduce_scatter",
        build: |_, n| reduce_scatter::direct::schedule(n),
    },
    Generator {
        name: "direct",
        collective: "broadcast",
        build: |c, n| broadcast::direct::schedule(n, root(c)),
    },
];

/// The generators for `collective`, in the order of the table.
pub fn generators(collective: Collective) -> impl Iterator<Item = &'static Generator> {
    GENERATORS.iter().filter(move |g| g.collective == collective.name())
}

/// The schedule of a communicator of one rank: every chunk of the output is the own contribution.
fn alone(name: &'static str, collective: Collective) -> Schedule {
    let mut step = Step::new([operand::input(0)], [operand::output(0)]);
    step.finish = collective.reduces();
    Schedule::new(name, collective, 1, 1, Table(vec![vec![vec![step]]])).canonical()
}
