//! Who talks to whom: shapes over ranks, free of what is moved.

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
