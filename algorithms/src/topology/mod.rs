//! What algorithms know of the machine: which ranks are close to each other.

mod grouping;

pub use grouping::Grouping;
