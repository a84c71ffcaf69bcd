//! Generators of all-to-all: rank `r` ends with block `r` of every rank's input, in rank order.

pub mod bruck;
pub mod direct;

use crate::collective::Generator;

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "alltoall", |_, n| direct::schedule(n)),
    Generator::new("bruck", "alltoall", |_, n| bruck::schedule(n)),
];
