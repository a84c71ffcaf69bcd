//! The control plane as state machines: how ranks find each other, exchange what they must know,
//! find dead, slow and mismatched ranks, and end together.
//!
//! Nothing here does I/O, reads a clock, sleeps or starts a thread. A state machine gets inputs
//! (a frame came, a connection or a process ended, a call wants something, a moment has come) with
//! the present time, and gives outputs (send this frame, end all waits with this verdict) and the
//! moment at which it wants to be called next. The crate `maypole` connects the machines with
//! sockets and threads; the tests of this crate connect them with a simulated world, in which
//! connections stall and close, processes stop and die, and clocks jump.
//!
//! | file | purpose |
//! |---|---|
//! | `time` | moments |
//! | `codec`, `rank_set`, `listener_addresses`, `root_share`, `items` | values in frames |
//! | `call_signature`, `activity` | what a rank calls, and what it does |
//! | `verdict`, `verdict_codec`, `report` | what is proven, and what is only slow |
//! | `tree_shape` | which rank connects to which |
//! | `frame` | control frames |
//! | `bootstrap` | how ranks find each other |
//! | `communicator` | a rank of a communicator |
//! | `long_wait` | a rank that waits in a call |

#![forbid(unsafe_code)]

pub mod activity;
pub mod bootstrap;
pub mod call_signature;
pub mod codec;
pub mod communicator;
pub mod frame;
pub mod items;
pub mod listener_addresses;
pub mod long_wait;
pub mod rank_set;
pub mod report;
pub mod root_share;
pub mod time;
pub mod tree_shape;
pub mod verdict;
mod verdict_codec;

#[cfg(test)]
mod world;
