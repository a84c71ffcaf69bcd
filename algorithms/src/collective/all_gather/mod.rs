//! Generators of all-gather: every rank ends with the inputs of all ranks, in rank order.

pub mod biring;
pub mod circulant;
pub mod direct;
pub mod doubling;
pub mod pat;
pub mod ring;

use crate::collective::Generator;

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "all_gather", |_, n| direct::schedule(n)),
    Generator::new("ring", "all_gather", |_, n| ring::schedule(n)),
    Generator::new("biring", "all_gather", |_, n| biring::schedule(n)),
    Generator::new("pat", "all_gather", |_, n| pat::schedule(n)),
    Generator::new("doubling", "all_gather", |_, n| doubling::schedule(n)),
    Generator::new("circulant", "all_gather", |_, n| circulant::schedule(n)),
];
