//! Every rank ends with all inputs, by rank.

pub mod direct;
pub mod pat;
