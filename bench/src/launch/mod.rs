//! Where a process of a benchmark stands among the others, and how they talk before there is a communicator.
//!
//! Whoever started the processes gives each a [`Place`]: its number, how many there are, and an [`Exchange`]. Nothing else of a
//! launcher is known outside of this module. [`find`] asks the launchers in turn; a process that none of them started is alone.
//! Another launcher is another file here, with a `job` function that returns None where it has not started this process, and a
//! line in [`job`]'s table. `docs/launchers.md` says how the secret of a job travels under each.
//!
//! | file | idea |
//! |---|---|
//! | `local`, `socket` | `-np`: this program is the launcher |
//! | `job` | which launcher started this process, by its variables |
//! | `pmi`, `pmix`, `torchrun`, `slurm` | the launchers |
//! | `connect` | from what a launcher says to an exchange |
//! | `rendezvous`, `sealed`, `star` | finding rank 0, an encrypted connection, an exchange over connections to rank 0 |
//! | `mpi` | with feature `mpi`: MPI itself |

mod connect;
mod job;
pub(crate) mod local;
#[cfg(feature = "mpi")]
mod mpi;
mod pmi;
mod pmix;
mod rendezvous;
mod sealed;
mod slurm;
mod socket;
mod star;
mod torchrun;

use std::io;

/// One process among those of a run.
pub(crate) struct Place {
    /// Its number: `0..nranks`.
    pub(crate) rank: u32,
    /// How many processes there are.
    pub(crate) nranks: u32,
    /// How they talk.
    pub(crate) exchange: Box<dyn Exchange>,
}

/// What the processes of a run tell one another out of band: ids, names, times. Every process makes the same calls.
pub(crate) trait Exchange: Send {
    /// Gives `mine`, at most [`LONGEST`] bytes, to all processes; returns what each of them gave, by rank, when all have.
    ///
    /// # Errors
    /// A process that has ended, a launcher that cannot be reached.
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>>;
}

/// The most bytes that a process gives at once.
pub(crate) const LONGEST: usize = 1 << 20;

/// Nobody else is there.
struct Alone;

impl Exchange for Alone {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec()])
    }
}

/// This process' place.
///
/// # Errors
/// A launcher that began to give a place and could not end it.
pub(crate) fn find() -> io::Result<Place> {
    if let Some(place) = local::place()? {
        return Ok(place);
    }
    if let Some(job) = job::job(&environment).map_err(io::Error::other)? {
        return connect::place(job);
    }
    Ok(Place { rank: 0, nranks: 1, exchange: Box::new(Alone) })
}

/// True if a launcher started this process: it does not start others.
pub(crate) fn placed() -> bool {
    // What is wrong with a launcher's variables is for `find` to say.
    local::placed() || job::job(&environment) != Ok(None)
}

/// The MPI that this program was built with, if any.
pub(crate) fn mpi() -> Option<String> {
    #[cfg(feature = "mpi")]
    return Some(mpi::version());
    #[cfg(not(feature = "mpi"))]
    None
}

/// A variable of this process; an empty one is not set.
fn environment(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_nobody_started_is_alone() {
        let mut place = find().expect("no launcher is in the way");
        assert_eq!((place.rank, place.nranks, placed()), (0, 1, false));
        assert_eq!(place.exchange.all_gather(b"mine").expect("it is alone"), [b"mine"]);
    }
}
