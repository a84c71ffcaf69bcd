//! Communicators of CUDA devices, as far as they differ from those of host memory.
//!
//! | file | idea |
//! |---|---|
//! | `choice` | which device a communicator is for |
//! | `launch` | from checked calls, alone or of a group, to the library's launch |
//! | `memory` | what `ncclMemAlloc` gives on a device |

mod choice;
mod launch;
mod memory;

pub(crate) use choice::{chosen, listed, seen};
pub(crate) use launch::{launch_group, launch_one};
pub(crate) use memory::{allocate, check_factor, free, note_registration};
