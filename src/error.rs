//! What can go wrong: what happened, whose fault it is, what to do; and the `ncclResult_t` that says so in the C ABI.

use maypole_algorithms::Rank;
use maypole_cuda::driver::DriverError;
use maypole_transport::error::LinkError;

use crate::bootstrap::BootstrapError;
use crate::launch::LaunchError;

/// An error of the library. Whoever first decides one logs it; who passes it on does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The caller's fault, in one argument: the call had no effect and the communicator goes on.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// Which, and what it should be.
        what: String,
    },
    /// The caller's fault, in the order or the agreement of calls or settings.
    #[error("invalid usage: {what}")]
    InvalidUsage {
        /// Which rule it breaks.
        what: String,
    },
    /// Work that was issued on a stream failed, and the log says why.
    #[error("work of the stream failed ({code:?}); see the log for why")]
    Failed {
        /// What the C ABI has for it.
        code: ResultCode,
    },
    /// The caller's fault, here or there: two ranks are not in the same call.
    #[error(
        "the ranks are in different calls: {what}; every rank must make the same calls in the same order, with the same \
         count, type, operator and root"
    )]
    Mismatch {
        /// Two that differ.
        ranks: [Rank; 2],
        /// Both ranks and both calls.
        what: String,
    },
    /// A rank waited as long as `MAYPOLE_TIMEOUT` allows. The communicator is broken on all ranks.
    #[error("timeout: rank {rank} waited {:.1} s for rank {peer} ({what}); see what that rank does", waited.as_secs_f64())]
    Timeout {
        /// The rank that waited.
        rank: Rank,
        /// Whom it waited for.
        peer: Rank,
        /// In which call, or for what.
        what: String,
        /// How long.
        waited: std::time::Duration,
    },
    /// Someone ended the communicator on purpose.
    #[error("the communicator was aborted by rank {by}; make a new one")]
    Aborted {
        /// Who did; possibly this rank.
        by: Rank,
    },
    /// The system's fault: it refused a call.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: i32,
    },
    /// The CUDA driver refused a call. After an error of which it says that the process cannot use the device any more, nothing helps but a new process.
    #[error(transparent)]
    Cuda(#[from] DriverError),
    /// A link to a peer failed, or could not be made.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The ranks did not find together.
    #[error(transparent)]
    Bootstrap(BootstrapError),
    /// The launcher's variables cannot be used, or the processes that it started do not find each
    /// other.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Nobody's fault: this version does not do it.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// Our fault.
    #[error("internal error: {what}; please report it")]
    Internal {
        /// What should never be.
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
            // The same thing, whenever it happens.
            BootstrapError::Aborted { by } => Self::Aborted { by },
            other => Self::Bootstrap(other),
        }
    }
}

impl Error {
    /// Something that should never be.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal { what: what.into() }
    }

    /// What the C ABI returns for it.
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
            | Self::Link(L::System { .. })
            | Self::Bootstrap(B::System { .. }) => ResultCode::SystemError,
            Self::Aborted { .. }
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

    /// True if the call had no effect and the communicator goes on; after any other error it is broken.
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
