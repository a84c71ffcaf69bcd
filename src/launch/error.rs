//! The errors of finding the other processes of a launched job.

use std::io;

/// Why a process cannot take its place in a launched job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The launcher's variables are incomplete or contradict each other, or `MAYPOLE_LAUNCHER`
    /// names a launcher that did not start this process.
    #[error("{what}")]
    Variables {
        /// Which variables, and what to do.
        what: String,
    },
    /// The processes of the job could not find each other.
    #[error("process {rank} of {nranks} of {launcher}: {what}")]
    Rendezvous {
        /// The launcher that started this process.
        launcher: &'static str,
        /// The rank of this process.
        rank: u32,
        /// The number of processes of the job.
        nranks: u32,
        /// The kind of the failure.
        kind: io::ErrorKind,
        /// What happened, and what to do.
        what: String,
    },
}
