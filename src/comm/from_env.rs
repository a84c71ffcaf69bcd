//! A communicator of all processes that a launcher started.

use super::{Builder, Communicator};
use crate::bootstrap::UniqueId;
use crate::error::Error;
use crate::launch;

impl Communicator {
    /// Joins the communicator of all processes that `mpirun`, `srun` or `torchrun` started, with
    /// the rank that the launcher gave this process. A process that no launcher started is the only
    /// rank. Every process of the job calls it.
    ///
    /// ```
    /// let mut comm = maypole::Communicator::from_env()?;
    /// let mut sum = [0];
    /// comm.all_reduce(&[comm.rank()], &mut sum, maypole::RedOp::Sum)?;
    /// println!("rank {} of {}: {}", comm.rank(), comm.nranks(), sum[0]);
    /// # Ok::<(), maypole::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Builder::from_env`] and [`Builder::build`].
    pub fn from_env() -> Result<Self, Error> {
        Builder::from_env()?.build()
    }
}

impl Builder {
    /// The builder of the communicator of [`Communicator::from_env`]: id and rank are set. Returns
    /// when all processes of the job have called it.
    ///
    /// # Errors
    /// [`Error::Launch`] if the variables of the launcher are incomplete or the processes cannot
    /// find each other; a failure of rank 0 to create the id.
    pub fn from_env() -> Result<Self, Error> {
        let launched = launch::find()?;
        let (rank, nranks, mut exchange) = (launched.rank, launched.nranks, launched.exchange);
        let created = (rank == 0).then(UniqueId::create).transpose();
        // If rank 0 has no id it still takes part, so that the other ranks do not wait for it.
        let own = created.as_ref().ok().and_then(|id| id.as_ref()).map(|id| id.to_bytes().to_vec());
        let gathered = exchange.all_gather(&own.unwrap_or_default());
        created?;
        let lost = |what: String| {
            Error::Launch(launch::LaunchError::Rendezvous {
                launcher: "the launcher",
                rank,
                nranks,
                kind: std::io::ErrorKind::ConnectionAborted,
                what,
            })
        };
        let gathered = gathered
            .map_err(|error| lost(format!("the unique id of rank 0 did not arrive: {error}")))?;
        let bytes = gathered.first().and_then(|bytes| bytes.as_slice().try_into().ok());
        let bytes = bytes
            .ok_or_else(|| lost(String::from("rank 0 gave no unique id; see what it prints")))?;
        Ok(Communicator::builder(&UniqueId::from_bytes(bytes)?).rank(rank, nranks))
    }
}
