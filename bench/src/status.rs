//! Exit statuses: nccl-tests' where it has one for the case.

/// All is fine.
pub(crate) const FINE: u8 = 0;
/// A proof failed.
pub(crate) const DISPROVED: u8 = 1;
/// The library, or the system, failed.
pub(crate) const FAILED: u8 = 3;
/// No progress.
pub(crate) const TIMEOUT: u8 = 4;
/// The command line is not understood.
pub(crate) const USAGE: u8 = 6;
/// Values were wrong.
pub(crate) const WRONG: u8 = 7;
