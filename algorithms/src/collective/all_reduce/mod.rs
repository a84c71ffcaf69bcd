//! Generators of all-reduce: every rank ends with the reduction of all inputs.
//!
//! Costs are in the alpha-beta model: `n` ranks, `m` bytes per rank, `a` seconds per message, `b`
//! seconds per byte moved, `g` seconds per byte reduced.

pub mod biring;
pub mod circulant;
pub mod double_tree;
pub mod halving;
pub mod one_shot;
pub mod recursive_doubling;
pub mod ring;
pub mod two_shot;

use crate::collective::Generator;

/// The generators for this collective.
pub(super) const GENERATORS: &[Generator] = &[
    Generator::new("ring", "all_reduce", |_, n| ring::schedule(n)),
    Generator::new("biring", "all_reduce", |_, n| biring::schedule(n)),
    Generator::new("oneshot", "all_reduce", |_, n| one_shot::schedule(n)),
    Generator::new("twoshot", "all_reduce", |_, n| two_shot::schedule(n)),
    Generator::new("doubling", "all_reduce", |_, n| recursive_doubling::schedule(n)),
    Generator::new("tree", "all_reduce", |_, n| double_tree::schedule(n)),
    Generator::new("halving", "all_reduce", |_, n| halving::schedule(n)),
    Generator::new("circulant", "all_reduce", |_, n| circulant::schedule(n)),
];
