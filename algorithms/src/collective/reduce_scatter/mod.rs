//! Generators of reduce-scatter: rank `r` ends with block `r` of the reduction of all inputs.

pub mod biring;
pub mod circulant;
mod closing;
pub mod direct;
pub mod halving;
pub mod pat;
pub mod ring;

use crate::collective::Generator;

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "reduce_scatter", |_, n| direct::schedule(n)),
    Generator::new("ring", "reduce_scatter", |_, n| ring::schedule(n)),
    Generator::new("biring", "reduce_scatter", |_, n| biring::schedule(n)),
    Generator::new("halving", "reduce_scatter", |_, n| halving::schedule(n)),
    Generator::new("circulant", "reduce_scatter", |_, n| circulant::schedule(n)),
    Generator::new("pat", "reduce_scatter", |_, n| pat::schedule(n)),
];
