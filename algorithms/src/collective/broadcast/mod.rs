//! Every rank ends with the root's input.

pub mod direct;

use crate::collective::{Generator, root};

/// All of them.
pub(super) const GENERATORS: &[Generator] =
    &[Generator::new("direct", "broadcast", |c, n| direct::schedule(n, root(c)))];
