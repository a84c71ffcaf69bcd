//! Communicators for devices, on the simulated GPU.

mod calls;
mod ends;
mod environment;
mod processes;
mod streams;
mod support;
