//! What a rank queues on the streams of its device: programs, the works that run them, and the
//! order of works.

pub(crate) mod device_rank;
mod group_programs;
pub(crate) mod program;
mod stream_order;
mod transfers;
pub(crate) mod work;
pub(crate) mod work_order;

pub use stream_order::{CudaStreamHandle, order_streams};
