//! Rank `r` ends with block `r` of the reduction of all inputs.

pub mod direct;
