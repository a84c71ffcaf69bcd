//! Communicators of CUDA devices, as far as they differ from those of host memory.
//!
//! | file | content |
//! |---|---|
//! | `choice` | on which device a communicator works |
//! | `launch` | queues checked calls, of one function or of a group, on streams of devices |
//! | `memory` | memory of a device for clients, and checks of addresses |

mod choice;
mod launch;
mod memory;

pub(crate) use choice::{CommMemory, describe_devices};
pub(crate) use launch::{CommLaunch, launch_call, launch_group};
pub(crate) use memory::{allocate, check_factor, free, log_registration};
