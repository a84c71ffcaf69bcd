//! Finds the rank of this process and its exchange with the other processes of a run.
//!
//! `maypole bench -np` is a launcher of its own (`local`, `inherited_socket`). The other launchers
//! are those of [`maypole::launch_calls`]; with feature `mpi`, processes that the mpirun of the
//! program's own MPI started use MPI itself (`mpi`).

mod inherited_socket;
pub(crate) mod local;
#[cfg(feature = "mpi")]
mod mpi;

pub(crate) use maypole::launch::{LaunchExchange, LaunchedRank, MAX_CONTRIBUTION};

use crate::status::Failure;

/// Finds the rank of this process and connects it with the other processes of the run.
///
/// # Errors
/// A launcher's variables cannot be used, or the processes cannot find each other.
pub(crate) fn find() -> Result<LaunchedRank, Failure> {
    if let Some(launched) = local::launched_rank()? {
        return Ok(launched);
    }
    let job = maypole::launch::detect()?;
    #[cfg(feature = "mpi")]
    if let Some(job) = &job
        && mpi::serves(job)
    {
        return Ok(mpi::launched_rank(job)?);
    }
    Ok(match job {
        Some(job) => job.connect()?,
        None => LaunchedRank::alone(),
    })
}

/// Whether a launcher started this process. Such a process does not start others.
pub(crate) fn is_launched() -> bool {
    // Variables that cannot be used are reported by `find`.
    local::is_launched() || maypole::launch::detect() != Ok(None)
}

/// The MPI that this program was built with, if any.
pub(crate) fn mpi() -> Option<String> {
    #[cfg(feature = "mpi")]
    return Some(mpi::version());
    #[cfg(not(feature = "mpi"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        let launched = find().expect("no launcher's variables are set in a test");
        assert_eq!((launched.rank, launched.nranks, is_launched()), (0, 1, false));
    }
}
