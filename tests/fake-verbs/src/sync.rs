//! The atomic types of this crate. They are aliases, as the rest of the workspace takes atomics
//! from its transport crate, on which a stand-in for a system library must not depend.

pub(crate) use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

pub(crate) use self::types::*;

/// The one place that names the types of the standard library.
#[allow(clippy::disallowed_types)]
mod types {
    use core::sync::atomic as std_atomic;

    /// An atomic `u32`.
    pub(crate) type AtomicU32 = std_atomic::AtomicU32;
    /// An atomic `u64`.
    pub(crate) type AtomicU64 = std_atomic::AtomicU64;
}
