//! The devices of this process, and what a rank sets up on its device before the ranks know each
//! other.

pub(crate) mod device_info;
mod devices;
pub(crate) mod gpu;
pub(crate) mod rank_setup;

pub use devices::{check, count, current};
