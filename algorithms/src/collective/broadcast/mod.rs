//! Every rank ends with the root's input.

pub mod direct;
