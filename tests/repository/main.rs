//! Rules of the repository that no compiler checks: which crate and which module imports
//! which, how long lines are, whether documentation shows code as it is.

mod add_an_algorithm;
mod columns;
mod dependencies;
mod imports;
