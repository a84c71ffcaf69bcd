//! Generators of broadcast: every rank ends with the root's input.

pub mod binomial;
pub mod chain;
pub mod circulant;
pub mod direct;
pub mod double_tree;
pub mod scatter;

use crate::collective::{Generator, root};

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("direct", "broadcast", |c, n| direct::schedule(n, root(c))),
    Generator::new("binomial", "broadcast", |c, n| binomial::schedule(n, root(c))),
    Generator::new("chain", "broadcast", |c, n| chain::schedule(n, root(c))),
    Generator::new("tree", "broadcast", |c, n| double_tree::schedule(n, root(c))),
    Generator::new("scatter", "broadcast", |c, n| scatter::schedule(n, root(c))),
    Generator::new("circulant", "broadcast", |c, n| circulant::schedule(n, root(c))),
];
