//! What algorithms know about the machine: which ranks share a node.

mod grouping;

pub use grouping::Grouping;
