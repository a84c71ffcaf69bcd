//! Schedules of collective communication: what they mean, how they are generated, how they are
//! proved.
//!
//! An algorithm is a pure function that returns a [`Schedule`]. Nothing here does I/O, reads a
//! clock, starts a thread or is unsafe; see `docs/schedule.md` for the ideas.

#![forbid(unsafe_code)]

pub mod collective;
pub mod cost;
mod flat;
pub mod hierarchy;
pub mod mutate;
pub mod pattern;
pub mod proof_suite;
pub mod schedule;
pub mod semantics;
pub mod svg;
pub mod topology;
pub mod types;
pub mod verify;

pub use flat::FlatSchedule;
pub use schedule::{Chunk, Class, Operand, Program, Schedule, Step};
pub use types::{Collective, DType, Rank, RedOp};
