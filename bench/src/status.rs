//! Exit statuses: nccl-tests' where it has one for the case.

/// All is fine.
pub(crate) const FINE: u8 = 0;
/// A proof failed, or what should never be: nccl-tests' internal error.
pub(crate) const DISPROVED: u8 = 1;
/// The system failed: nccl-tests' CUDA error.
pub(crate) const SYSTEM: u8 = 2;
/// The library failed.
pub(crate) const FAILED: u8 = 3;
/// No progress.
pub(crate) const TIMEOUT: u8 = 4;
/// Understood, but not possible here.
pub(crate) const UNSUPPORTED: u8 = 5;
/// The command line is not understood.
pub(crate) const USAGE: u8 = 6;
/// Values were wrong, or the bandwidth too low.
pub(crate) const WRONG: u8 = 7;
