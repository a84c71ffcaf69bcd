//! The root ends with all inputs, by rank.

pub mod binomial;
pub mod direct;

use crate::collective::{Generator, root};

/// All of them.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "gather", |c, n| direct::schedule(n, root(c))),
    Generator::new("binomial", "gather", |c, n| binomial::schedule(n, root(c))),
];
