//! The errors of the library: what happened, whose fault it is and what to do, and the
//! `ncclResult_t` of each.

use std::any::Any;

use maypole_algorithms::Rank;
use maypole_cuda::driver::DriverError;
use maypole_transport::error::LinkError;

use crate::bootstrap::BootstrapError;
use crate::launch::LaunchError;

/// An error of the library. The code that first returns an error logs it; code that passes it on
/// does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The fault of the caller: an argument is wrong. The call had no effect, and the communicator
    /// can still be used.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// Which argument, and what it should be.
        what: String,
    },
    /// The fault of the caller: calls are in the wrong order, or calls or settings of the ranks do
    /// not agree.
    #[error("invalid usage: {what}")]
    InvalidUsage {
        /// Which rule was broken.
        what: String,
    },
    /// Work that was issued on a stream has failed. The log says why.
    #[error("work that was issued on the stream has failed ({code:?}); the log says why")]
    Failed {
        /// The result code of the failed work.
        code: ResultCode,
    },
    /// The fault of a caller on this or another rank: two ranks are not in the same call.
    #[error(
        "the ranks are in different calls: {what}; make the same calls in the same order on all \
         ranks, with the same count, type, operator and root"
    )]
    Mismatch {
        /// Two ranks that differ.
        ranks: [Rank; 2],
        /// The calls of both ranks.
        what: String,
    },
    /// A rank waited as long as `MAYPOLE_TIMEOUT` allows. The communicator has ended on all ranks.
    #[error("timeout: rank {rank} waited {:.1} s for rank {peer} ({what}); check what that rank \
        does", waited.as_secs_f64())]
    Timeout {
        /// The rank that waited.
        rank: Rank,
        /// The rank that it waited for.
        peer: Rank,
        /// The call in which it waited, or what it waited for.
        what: String,
        /// How long it waited.
        waited: std::time::Duration,
    },
    /// The user of a rank aborted the communicator.
    #[error("the communicator was aborted by rank {by}; make a new one")]
    Aborted {
        /// The rank that aborted; possibly this one.
        by: Rank,
    },
    /// The user of a rank revoked the communicator.
    #[error(
        "the communicator was revoked by rank {by}; revoke it on this rank too, and split or \
         shrink it"
    )]
    Revoked {
        /// The rank that revoked it; possibly this one.
        by: Rank,
    },
    /// A rank left, and what it had sent did not reach other ranks.
    #[error(
        "rank {rank} left with data unsent: {messages} messages of {bytes} bytes did not reach \
         {peers} within MAYPOLE_FLUSH_TIMEOUT; see whether they are stopped, or cut off"
    )]
    LeftUnsent {
        /// The rank that left.
        rank: Rank,
        /// The ranks that have not received everything.
        peers: crate::bootstrap::RankSet,
        /// The number of lost messages.
        messages: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The fault of the system: it refused a call.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
    /// The CUDA driver refused a call. If the driver states that the process cannot use the device
    /// any more, only a new process can use it.
    #[error(transparent)]
    Cuda(#[from] DriverError),
    /// A link to a peer failed, or could not be made.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The communicator could not be made, or an exchange over the control tree failed.
    #[error(transparent)]
    Bootstrap(BootstrapError),
    /// The launcher's variables cannot be used, or the processes that it started do not find each
    /// other.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// This version of the library does not support what was asked for.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// The fault of the library.
    #[error("internal error: {what}; please report it")]
    Internal {
        /// What should not have happened.
        what: String,
    },
}

/// `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ResultCode {
    /// `ncclSuccess`
    Success = 0,
    /// `ncclUnhandledCudaError`
    UnhandledCudaError = 1,
    /// `ncclSystemError`
    SystemError = 2,
    /// `ncclInternalError`
    InternalError = 3,
    /// `ncclInvalidArgument`
    InvalidArgument = 4,
    /// `ncclInvalidUsage`
    InvalidUsage = 5,
    /// `ncclRemoteError`
    RemoteError = 6,
    /// `ncclInProgress`
    InProgress = 7,
    /// `ncclTimeout`
    Timeout = 8,
}

impl From<BootstrapError> for Error {
    fn from(error: BootstrapError) -> Self {
        match error {
            // An abort is the same error before and after init.
            BootstrapError::Aborted { by } => Self::Aborted { by },
            other => Self::Bootstrap(other),
        }
    }
}

impl Error {
    /// An error of the library itself.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal { what: what.into() }
    }

    /// The error that a panic with this payload is.
    pub(crate) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Self::internal(format!("a panic: {}", text.unwrap_or("it has no text")))
    }

    /// The result code that the C ABI returns for this error.
    pub fn code(&self) -> ResultCode {
        use BootstrapError as B;
        use LinkError as L;
        match self {
            Self::InvalidArgument { .. }
            | Self::Bootstrap(
                B::NoSuchRank { .. } | B::TooLong { .. } | B::NotAnId { .. } | B::Ids { .. },
            ) => ResultCode::InvalidArgument,
            Self::Failed { code } => *code,
            Self::Cuda(_) => ResultCode::UnhandledCudaError,
            Self::InvalidUsage { .. }
            | Self::Mismatch { .. }
            | Self::Unsupported { .. }
            | Self::Launch(LaunchError::Variables { .. })
            | Self::Link(L::PeerLeft { .. } | L::NotConnected { .. } | L::Misuse { .. })
            | Self::Bootstrap(
                B::Setting { .. }
                | B::DuplicateRank { .. }
                | B::WrongId { .. }
                | B::DifferentRankCount { .. }
                | B::Disagreement { .. },
            ) => ResultCode::InvalidUsage,
            Self::System { .. }
            | Self::Launch(LaunchError::Rendezvous { .. })
            | Self::Link(L::System { .. } | L::Unreachable { .. } | L::Rdma { .. })
            | Self::Bootstrap(B::System { .. } | B::NoAddress { .. }) => ResultCode::SystemError,
            Self::Aborted { .. }
            | Self::Revoked { .. }
            | Self::LeftUnsent { .. }
            | Self::Link(L::Aborted { .. } | L::PeerDied { .. } | L::Refused { .. })
            | Self::Bootstrap(
                B::RootUnreachable { .. }
                | B::RootLost { .. }
                | B::PeerLost { .. }
                | B::PeerFailed { .. }
                | B::Aborted { .. },
            ) => ResultCode::RemoteError,
            Self::Timeout { .. }
            | Self::Link(L::Timeout { .. })
            | Self::Bootstrap(B::MissingRanks { .. } | B::TimedOut { .. }) => ResultCode::Timeout,
            Self::Link(L::Corrupt { .. })
            | Self::Bootstrap(B::Protocol { .. })
            | Self::Internal { .. } => ResultCode::InternalError,
        }
    }

    /// Whether the call had no effect and the communicator can still be used. Any other error ends
    /// the communicator.
    pub fn is_harmless(&self) -> bool {
        self.code() == ResultCode::InvalidArgument
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_codes_that_clients_expect() {
        let missing = BootstrapError::MissingRanks {
            ranks: crate::bootstrap::RankSet::new([3]),
            nranks: 4,
            waited: std::time::Duration::from_secs(600),
        };
        assert_eq!(Error::from(missing).code() as i32, 8);
        assert_eq!(Error::internal("x").code() as i32, 3);
        let argument = Error::InvalidArgument { what: "count".into() };
        assert!(argument.is_harmless() && argument.code() as i32 == 4);
        assert!(!Error::Aborted { by: 1 }.is_harmless());
    }
}
