//! Support for the tests of the kernels: a device, a scalar evaluation, and ranks with links in
//! device memory.

pub(crate) mod alone;
pub(crate) mod device;
pub(crate) mod operation;
pub(crate) mod random;
pub(crate) mod ranks;
pub(crate) mod scalar;
