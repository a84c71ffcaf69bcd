//! With feature `mpi`: the exchange is MPI's own, so what the ranks tell each other, the unique id above all, travels as MPI's
//! messages do. A program is tied to the MPI it was built with; under another's launcher it goes by what that launcher
//! offers ([`job`](super::job)), as a program without the feature does.

use std::io;
use std::time::Duration;

use mpi::Threading;
use mpi::collective::CommunicatorCollectives;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};

use super::Exchange;
use super::job::Way;

/// Between two looks at a barrier: MPI has no wait that sleeps, and who is early must leave its core to the others.
const PAUSE: Duration = Duration::from_micros(100);

/// An exchange among all processes of `MPI_COMM_WORLD`. MPI ends with it. It may be used by one thread after the other.
pub(super) struct World {
    _universe: Universe,
}

/// The first line of what MPI says of itself.
pub(super) fn version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    // Some end it with a zero byte.
    let text = text.trim_matches(['\0', ' ', '\n']).lines().next().unwrap_or_default();
    text.split(',').next().unwrap_or_default().replace('\t', " ")
}

/// Whether the launcher that left this way is that of our MPI.
pub(super) fn serves(way: &Way) -> bool {
    serves_as(&version(), way)
}

fn serves_as(version: &str, way: &Way) -> bool {
    match way {
        Way::Pmix(_) => version.starts_with("Open MPI"),
        Way::Pmi(_) => version.starts_with("MPICH") || version.starts_with("Intel"),
        Way::Host(_) | Way::Dial { .. } => false,
    }
}

/// Begins MPI.
pub(super) fn exchange(rank: u32, nranks: u32) -> io::Result<World> {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(io::Error::other("MPI has been begun and ended in this process already"));
    };
    let world = universe.world();
    let found = (world.rank().cast_unsigned(), world.size().cast_unsigned());
    if found != (rank, nranks) {
        let (rank, nranks) = found;
        return Err(io::Error::other(format!(
            "MPI says rank {rank} of {nranks}: is this the mpirun of {}?",
            version()
        )));
    }
    Ok(World { _universe: universe })
}

impl Exchange for World {
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
        // Open MPI refuses to gather nothing at all.
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
        let (pmi, pmix) = (Way::Pmi(6), Way::Pmix(None));
        assert!(serves_as("Open MPI v4.1.4", &pmix) && !serves_as("Open MPI v4.1.4", &pmi));
        assert!(
            serves_as("MPICH Version: 4.0.2", &pmi) && !serves_as("MPICH Version: 4.0.2", &pmix)
        );
        assert!(serves_as("Intel(R) MPI Library 2021.19", &pmi));
        assert!(!version().is_empty());
    }
}
