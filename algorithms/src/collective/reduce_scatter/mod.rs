//! Rank `r` ends with block `r` of the reduction of all inputs.

pub mod biring;
mod closing;
pub mod direct;
pub mod halving;
pub mod ring;

use crate::collective::Generator;

/// All of them.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "reduce_scatter", |_, n| direct::schedule(n)),
    Generator::new("ring", "reduce_scatter", |_, n| ring::schedule(n)),
    Generator::new("biring", "reduce_scatter", |_, n| biring::schedule(n)),
    Generator::new("halving", "reduce_scatter", |_, n| halving::schedule(n)),
];
