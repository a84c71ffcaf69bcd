//! Rules of the repository that no compiler checks: which crate and which module imports which, and
//! how long lines are.

mod columns;
mod dependencies;
mod imports;
