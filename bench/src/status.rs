//! How a run ends: exit statuses, nccl-tests' where it has one for the case, and the line that says why.

use std::fmt;
use std::io;

use maypole::ResultCode;

/// All is fine.
pub(crate) const FINE: u8 = 0;
/// A proof failed.
pub(crate) const DISPROVED: u8 = 1;
/// What should never be.
pub(crate) const INTERNAL: u8 = 1;
/// The system failed: nccl-tests' CUDA error.
pub(crate) const SYSTEM: u8 = 2;
/// The library failed.
pub(crate) const FAILED: u8 = 3;
/// No progress.
pub(crate) const TIMEOUT: u8 = 4;
/// Understood, but not possible here.
pub(crate) const UNSUPPORTED: u8 = 5;
/// The command line, or a variable, is not understood.
pub(crate) const USAGE: u8 = 6;
/// Values were wrong, or the bandwidth too low.
pub(crate) const WRONG: u8 = 7;

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the process ends with.
    pub(crate) status: u8,
    /// One line that says what went wrong and what to do.
    pub(crate) text: String,
    /// Every process comes to the same conclusion: one of them says it for all.
    pub(crate) common: bool,
}

impl Failure {
    /// The caller's fault.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { status: USAGE, text: text.into(), common: true }
    }

    /// What host memory cannot do.
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self { status: UNSUPPORTED, text: text.into(), common: true }
    }

    /// Our fault.
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self { status: INTERNAL, text: text.into(), common: false }
    }

    /// The system's fault.
    pub(crate) fn system(text: impl Into<String>) -> Self {
        Self { status: SYSTEM, text: text.into(), common: false }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<maypole::Error> for Failure {
    fn from(error: maypole::Error) -> Self {
        let status = match (&error, error.code()) {
            (maypole::Error::Unsupported { .. }, _) => UNSUPPORTED,
            (_, ResultCode::Timeout) => TIMEOUT,
            (_, ResultCode::InternalError) => INTERNAL,
            _ => FAILED,
        };
        Self { status, text: error.to_string(), common: false }
    }
}

impl From<maypole::launch::LaunchError> for Failure {
    fn from(error: maypole::launch::LaunchError) -> Self {
        Self::system(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::system(error.to_string())
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::usage(error.to_string())
    }
}
