//! How a run ends: exit statuses, which are those of nccl-tests where it has one, and the line that
//! says why.

use std::fmt;
use std::io;

use maypole::ResultCode;
use maypole::launch::LaunchError;

/// Success.
pub(crate) const FINE: u8 = 0;
/// A proof failed, or `doctor` found something that will fail or be slow.
pub(crate) const DISPROVED: u8 = 1;
/// An error in this program or in the library.
pub(crate) const INTERNAL: u8 = 1;
/// The system failed. nccl-tests uses it for CUDA errors.
pub(crate) const SYSTEM: u8 = 2;
/// The library failed.
pub(crate) const FAILED: u8 = 3;
/// A rank made no progress for too long.
pub(crate) const TIMEOUT: u8 = 4;
/// The request is valid, but not possible on host memory.
pub(crate) const UNSUPPORTED: u8 = 5;
/// The command line or an environment variable is not understood.
pub(crate) const USAGE: u8 = 6;
/// Values were wrong, or the bandwidth was too low.
pub(crate) const WRONG: u8 = 7;

/// A size is not understood. nccl-tests returns -1 then.
pub(crate) const BAD_SIZE: u8 = 255;

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit status of the process.
    pub(crate) status: u8,
    /// One line that says what went wrong and what to do.
    pub(crate) text: String,
    /// Whether every process fails for the same reason, so that one of them reports it for all.
    pub(crate) common: bool,
}

impl Failure {
    /// A mistake of the user.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { status: USAGE, text: text.into(), common: true }
    }

    /// Something that is not possible on host memory.
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self { status: UNSUPPORTED, text: text.into(), common: true }
    }

    /// An error in this program or in the library.
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self { status: INTERNAL, text: text.into(), common: false }
    }

    /// A failure of the system.
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

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::system(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::system(error.to_string())
    }
}
