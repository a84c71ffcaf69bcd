//! Communication patterns: trees, rings and rounds over ranks, independent of the data that moves.

pub mod aligned;
pub mod binomial;
pub mod biring;
pub mod broadcast_rounds;
pub mod broadcast_turns;
pub mod butterfly;
pub mod circulant;
pub mod fan;
pub mod halving;
pub mod hops;
pub mod pat;
pub mod ring;
pub mod rooted_pair;
pub mod tree;
