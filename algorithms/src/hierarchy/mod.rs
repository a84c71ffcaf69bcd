//! Hierarchies: schedules for several nodes, composed of schedules within the nodes and between them.

pub mod all_reduce;
mod compose;
mod kit;

pub use kit::{Source, named};
