//! Schedules of collective communication: their meaning, their generators, their proof and their
//! cost.
//!
//! An algorithm is a pure function that returns a [`Schedule`]. This crate does no I/O, reads no
//! clock, starts no thread and has no unsafe code. `docs/schedule.md` explains the ideas.

#![forbid(unsafe_code)]

pub mod collective;
pub mod cost;
mod flat;
pub mod hierarchy;
mod markup;
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
