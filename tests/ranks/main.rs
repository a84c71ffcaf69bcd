//! Ranks as processes and as threads: calls, communicators, windows, memory that is read in place,
//! and what the others see when one dies, stops, comes late or makes another call.

#[path = "../support/mixed_memory.rs"]
mod mixed_memory;
#[path = "../support/ranks.rs"]
mod ranks;
#[path = "../support/splitmix.rs"]
mod splitmix;

mod communicators;
mod control;
mod ends;
mod fault;
mod freeze;
mod hosts;
mod identity;
mod memory;
mod processes;
mod windows;
