//! Memory of a rank on its device: the inbox, scratch, programs, and words shared with kernels.

mod allocation;
pub(crate) mod inbox;
pub(crate) mod inbox_layout;
pub(super) mod program_memory;
pub(super) mod scratch;
pub(crate) mod signals;

pub use allocation::{DeviceAllocation, device_of, is_reachable};
