//! Hierarchies: schedules for several nodes, composed of schedules within the nodes and between them.

pub mod all_gather;
pub mod all_reduce;
pub mod all_to_all;
pub mod broadcast;
pub mod channels;
mod columns;
mod compose;
mod kit;
mod rails;
pub mod reduce;
pub mod reduce_scatter;

pub use kit::{Source, named};
