//! A simulated world that drives the state machines: many ranks in one thread, with delays,
//! connections that stall and break, processes that stop and die, and clocks that jump. A world
//! repeats by its seed; one that breaks an invariant is shrunk to a short script.
//!
//! | file | purpose |
//! |---|---|
//! | `join_script`, `joins` | worlds in which ranks join |
//! | `random` | random numbers |
//! | `script` | what happens in a world |
//! | `rank` | a rank: its program, its calls, what it can look up |
//! | `run` | the events of a world |
//! | `truth` | what must hold |
//! | `tests` | many worlds, and those that once broke an invariant |

mod join_script;
mod joins;
mod random;
mod rank;
mod run;
mod script;
mod tests;
mod truth;
