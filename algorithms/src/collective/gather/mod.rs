//! Generators of gather: the root ends with the inputs of all ranks, in rank order.

pub mod binomial;
pub mod direct;

use crate::collective::{Generator, root};

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "gather", |c, n| direct::schedule(n, root(c))),
    Generator::new("binomial", "gather", |c, n| binomial::schedule(n, root(c))),
];
