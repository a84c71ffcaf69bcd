//! Finds the launcher that started this process: its rank, the number of ranks, and a channel
//! between them that works before there is a communicator.
//!
//! ```no_run
//! let mut launched = maypole::launch::find()?;
//! let hello = format!("rank {} of {}", launched.rank, launched.nranks);
//! for text in launched.exchange.all_gather(hello.as_bytes())? {
//!     println!("{}", String::from_utf8_lossy(&text));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Supported launchers: `torchrun`, `mpirun` of Open MPI, MPICH and Intel MPI, and `srun`. They are
//! recognised by the environment variables that they set; `docs/launchers.md` lists these, and says
//! how the secret of a job reaches its processes. A process that no launcher started is the only
//! rank of its job.
//!
//! | file | purpose |
//! |---|---|
//! | `detect` | which launcher started this process |
//! | `pmi`, `pmix`, `torchrun`, `slurm` | the variables and the protocol of one launcher each |
//! | `job` | what a launcher's variables say |
//! | `connect` | from there to an exchange |
//! | `rendezvous`, `dial` | rank 0 listens, and the other ranks connect to it |
//! | `rank0_exchange` | an exchange over these connections |
//! | `encrypted_connection`, `host_socket` | the two kinds of connection |
//! | `frame` | messages on a stream |
//!
//! To support another launcher, add a file with a `job` function, which returns None where the
//! launcher did not start this process, and a line in the table of `detect`.

mod connect;
mod detect;
mod dial;
mod encrypted_connection;
mod error;
mod frame;
mod host_socket;
mod job;
mod pmi;
mod pmix;
mod rank0_exchange;
mod rendezvous;
mod slurm;
mod torchrun;

use std::io;

pub use error::LaunchError;
#[doc(hidden)]
pub use frame::{read_message, write_message};
pub use job::{LauncherJob, ProcessManagement};

/// The most bytes that a rank may contribute to one exchange.
pub const MAX_CONTRIBUTION: usize = 1 << 20;

/// One process of a job.
pub struct LaunchedRank {
    /// The rank of this process, from 0 to `nranks - 1`.
    pub rank: u32,
    /// The number of processes of the job.
    pub nranks: u32,
    /// The channel between the processes of the job.
    pub exchange: Box<dyn LaunchExchange>,
}

/// A channel over which the processes of a job tell each other what a communicator needs before it
/// exists, such as its unique id. Every process makes the same calls in the same order.
pub trait LaunchExchange: Send {
    /// Contributes `mine`, at most [`MAX_CONTRIBUTION`] bytes, and waits for all other processes.
    /// Returns the contributions of all processes, in the order of their ranks.
    ///
    /// # Errors
    /// Another process has ended, or the launcher cannot be reached.
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>>;
}

impl LaunchedRank {
    /// The only process of a job of its own.
    pub fn alone() -> Self {
        Self { rank: 0, nranks: 1, exchange: Box::new(AloneExchange) }
    }
}

/// Finds the launcher of this process and connects it with the other processes of the job. Returns
/// [`LaunchedRank::alone`] if no launcher started it. All processes of the job must call it; it
/// returns when all are there, or after `MAYPOLE_INIT_TIMEOUT`.
///
/// # Errors
/// [`LaunchError::Variables`] if a launcher's variables are incomplete or those of several
/// contradict each other, [`LaunchError::Rendezvous`] if the processes cannot find each other.
pub fn find() -> Result<LaunchedRank, LaunchError> {
    match detect()? {
        Some(job) => job.connect(),
        None => Ok(LaunchedRank::alone()),
    }
}

/// Reads from the environment which launcher started this process; None if none did. It opens no
/// connection.
///
/// # Errors
/// [`LaunchError::Variables`] if a launcher's variables are incomplete.
pub fn detect() -> Result<Option<LauncherJob>, LaunchError> {
    detect::detect(&environment, &detect::variable_of_ancestor)
        .map_err(|what| LaunchError::Variables { what })
}

/// The exchange of a process that is alone.
struct AloneExchange;

impl LaunchExchange for AloneExchange {
    fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        Ok(vec![mine.to_vec()])
    }
}

/// A variable of this process. An empty variable counts as not set.
fn environment(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        let mut launched = find().expect("no launcher's variables are set in a test");
        assert_eq!((launched.rank, launched.nranks), (0, 1));
        assert_eq!(detect(), Ok(None));
        assert_eq!(launched.exchange.all_gather(b"mine").expect("it is alone"), [b"mine"]);
    }
}
