//! The errors of the binding.

use std::io;

/// Why libibverbs cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be loaded: {why}")]
pub struct LibraryError {
    /// The name or the path that was tried.
    pub name: String,
    /// What the dynamic loader says.
    pub why: String,
}

/// A call of libibverbs that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// The system's libibverbs, or the device's driver, is too old to have the function.
    #[error("this libibverbs or the driver of the device has no {function}")]
    Missing {
        /// The name of the function.
        function: &'static str,
    },
    /// The function returned an error.
    #[error("{call} failed: {}", io::Error::from_raw_os_error(*.errno))]
    Failed {
        /// The name of the function.
        call: &'static str,
        /// The error number.
        errno: i32,
    },
}

impl VerbsError {
    /// The failure of a call that has set `errno`.
    pub(crate) fn last(call: &'static str) -> Self {
        let errno = io::Error::last_os_error().raw_os_error().filter(|errno| *errno != 0);
        Self::Failed { call, errno: errno.unwrap_or(libc::EIO) }
    }

    /// The result of a call that returns 0, or an error number, or -1 with `errno`.
    pub(crate) fn check(call: &'static str, status: i32) -> Result<(), Self> {
        match status {
            0 => Ok(()),
            -1 => Err(Self::last(call)),
            // Some providers return the negative of the number.
            _ => Err(Self::Failed { call, errno: status.abs() }),
        }
    }

    /// The error number, if the system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            Self::Missing { .. } => None,
        }
    }
}
