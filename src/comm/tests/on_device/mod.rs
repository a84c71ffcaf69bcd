//! Communicators for devices, on the simulated GPU.

mod calls;
mod ends;
mod environment;
mod processes;
mod side_effects;
mod streams;
mod support;
