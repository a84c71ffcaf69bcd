//! Generators of reduce: the root ends with the reduction of all inputs.

pub mod binomial;
pub mod chain;
pub mod circulant;
pub mod direct;
pub mod double_tree;
pub mod scatter;

use crate::collective::{Generator, root};

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "reduce", |c, n| direct::schedule(n, root(c))),
    Generator::new("binomial", "reduce", |c, n| binomial::schedule(n, root(c))),
    Generator::new("chain", "reduce", |c, n| chain::schedule(n, root(c))),
    Generator::new("tree", "reduce", |c, n| double_tree::schedule(n, root(c))),
    Generator::new("scatter", "reduce", |c, n| scatter::schedule(n, root(c))),
    Generator::new("circulant", "reduce", |c, n| circulant::schedule(n, root(c))),
];
