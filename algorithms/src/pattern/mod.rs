//! Who talks to whom: shapes over ranks, free of what is moved.

pub mod aligned;
pub mod binomial;
pub mod biring;
pub mod butterfly;
pub mod fan;
pub mod halving;
pub mod ring;
pub mod tree;
