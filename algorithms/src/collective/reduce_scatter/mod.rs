//! Rank `r` ends with block `r` of the reduction of all inputs.

pub mod direct;

use crate::collective::Generator;

/// All of them.
pub(super) const GENERATORS: &[Generator] =
    &[Generator::new("direct", "reduce_scatter", |_, n| direct::schedule(n))];
