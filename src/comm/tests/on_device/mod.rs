//! Communicators for devices, on the simulated GPU.

mod calls;
mod ends;
mod processes;
mod streams;
mod support;
