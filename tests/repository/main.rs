//! Rules of the repository that no compiler checks: which crate and which module imports
//! which, how long lines are, whether documentation shows code as it is.

#[path = "../support/cargo_build.rs"]
mod cargo_build;

mod add_an_algorithm;
mod columns;
mod dependencies;
mod imports;
mod pure;
mod readme;
mod sleeps;
