//! Rank `r` ends with block `r` of every rank's input, by rank.

pub mod bruck;
pub mod direct;

use crate::collective::Generator;

/// All of them.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "alltoall", |_, n| direct::schedule(n)),
    Generator::new("bruck", "alltoall", |_, n| bruck::schedule(n)),
];
