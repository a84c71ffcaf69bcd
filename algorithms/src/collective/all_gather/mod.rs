//! Every rank ends with all inputs, by rank.

pub mod direct;
pub mod pat;

use crate::collective::Generator;

/// All of them.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "all_gather", |_, n| direct::schedule(n)),
    Generator::new("pat", "all_gather", |_, n| pat::schedule(n)),
];
