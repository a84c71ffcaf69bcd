//! Every rank ends with the reduction of all inputs.
//!
//! Costs are in the alpha-beta model: `n` ranks, `m` bytes per rank, `a` seconds per message, `b` per byte moved, `g` per byte
//! reduced.

pub mod double_tree;
pub mod one_shot;
pub mod recursive_doubling;
pub mod ring;
pub mod two_shot;
pub mod uneven_example;
