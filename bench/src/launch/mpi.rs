//! The exchange over MPI, with feature `mpi`: what the ranks tell each other, such as the unique
//! id, travels as MPI's own messages.
//!
//! A program is tied to the MPI that it was built with. Under the launcher of another MPI it uses
//! [`maypole::launch_calls`], as a program without the feature does.

use std::io;
use std::time::Duration;

use mpi::Threading;
use mpi::collective::CommunicatorCollectives;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};

use maypole::launch::{LaunchExchange, LaunchedRank, LauncherJob, ProcessManagement};

/// The pause between two tests of a barrier. MPI has no wait that sleeps, and a rank that waits
/// must leave its core to the others.
const PAUSE: Duration = Duration::from_micros(100);

/// An exchange between all processes of `MPI_COMM_WORLD`. When it is dropped, MPI is finalized. One
/// thread at a time may use it.
struct MpiExchange {
    _universe: Universe,
}

/// The name and version of MPI, from the first line of its own description.
pub(super) fn version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    // Some versions of MPI end the text with a zero byte.
    let text = text.trim_matches(['\0', ' ', '\n']).lines().next().unwrap_or_default();
    text.split(',').next().unwrap_or_default().replace('\t', " ")
}

/// Whether the launcher that started this process is that of our MPI.
pub(super) fn serves(job: &LauncherJob) -> bool {
    job.process_management().is_some_and(|interface| is_launcher_of(&version(), interface))
}

fn is_launcher_of(version: &str, interface: ProcessManagement) -> bool {
    match interface {
        ProcessManagement::Pmix => version.starts_with("Open MPI"),
        ProcessManagement::Pmi1 => version.starts_with("MPICH") || version.starts_with("Intel"),
    }
}

/// Initializes MPI.
///
/// # Errors
/// MPI was already initialized, or disagrees with the launcher about rank and number of ranks.
pub(super) fn launched_rank(job: &LauncherJob) -> io::Result<LaunchedRank> {
    let (rank, nranks) = (job.rank(), job.nranks());
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(io::Error::other("MPI was already initialized in this process"));
    };
    let world = universe.world();
    let found = (world.rank().cast_unsigned(), world.size().cast_unsigned());
    if found != (rank, nranks) {
        return Err(io::Error::other(format!(
            "process {rank} of {nranks} of {}: MPI says that this is rank {} of {}; is this the \
             mpirun of {}?",
            job.launcher(),
            found.0,
            found.1,
            version()
        )));
    }
    let exchange = Box::new(MpiExchange { _universe: universe });
    Ok(LaunchedRank { rank, nranks, exchange })
}

impl LaunchExchange for MpiExchange {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let world = SimpleCommunicator::world();
        let mut barrier = world.immediate_barrier();
        while let Err(pending) = barrier.test() {
            barrier = pending;
            std::thread::sleep(PAUSE);
        }
        let mut counts = vec![0_i32; world.size() as usize];
        let len = i32::try_from(mine.len()).map_err(io::Error::other)?;
        world.all_gather_into(&len, &mut counts[..]);
        let starts: Vec<i32> =
            counts.iter().scan(0, |at, &count| Some(std::mem::replace(at, *at + count))).collect();
        let mut bytes = vec![0_u8; counts.iter().map(|&count| count as usize).sum()];
        // Open MPI refuses to gather no bytes at all.
        if !bytes.is_empty() {
            let mut parts = PartitionMut::new(&mut bytes[..], &counts[..], &starts[..]);
            world.all_gather_varcount_into(mine, &mut parts);
        }
        let part =
            |(&start, &count): (&i32, &i32)| bytes[start as usize..][..count as usize].to_vec();
        Ok(starts.iter().zip(&counts).map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_launcher_serves_an_mpi() {
        let (pmi, pmix) = (ProcessManagement::Pmi1, ProcessManagement::Pmix);
        assert!(is_launcher_of("Open MPI v4.1.4", pmix));
        assert!(!is_launcher_of("Open MPI v4.1.4", pmi));
        assert!(is_launcher_of("MPICH Version: 4.0.2", pmi));
        assert!(!is_launcher_of("MPICH Version: 4.0.2", pmix));
        assert!(is_launcher_of("Intel(R) MPI Library 2021.19", pmi));
        assert!(!version().is_empty());
    }
}
