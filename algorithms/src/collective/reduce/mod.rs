//! The root ends with the reduction of all inputs.

pub mod direct;

use crate::collective::{Generator, root};

/// All of them.
pub(super) const GENERATORS: &[Generator] =
    &[Generator::new("direct", "reduce", |c, n| direct::schedule(n, root(c)))];
