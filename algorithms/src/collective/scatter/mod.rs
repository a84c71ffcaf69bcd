//! Generators of scatter: rank `r` ends with block `r` of the root's input.

pub mod binomial;
pub mod direct;

use crate::collective::{Generator, root};

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "scatter", |c, n| direct::schedule(n, root(c))),
    Generator::new("binomial", "scatter", |c, n| binomial::schedule(n, root(c))),
];
