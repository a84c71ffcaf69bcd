//! A communicator whose ranks are threads of this process.

use super::Communicator;
use crate::bootstrap::UniqueId;
use crate::error::Error;

impl Communicator {
    /// Runs `rank` on each of `nranks` threads, with a communicator between them, and returns the
    /// results in the order of the ranks. The threads may borrow from the caller.
    ///
    /// ```
    /// use maypole::{Communicator, RedOp};
    ///
    /// let sums = Communicator::in_threads(4, |comm| {
    ///     let mut sum = [0];
    ///     comm.all_reduce(&[comm.rank()], &mut sum, RedOp::Sum)?;
    ///     Ok(sum[0])
    /// })?;
    /// assert_eq!(sums, [6; 4]);
    /// # Ok::<(), maypole::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of the lowest rank that has one.
    ///
    /// # Panics
    /// If a rank panics.
    pub fn in_threads<T: Send>(
        nranks: u32,
        rank: impl Fn(&mut Self) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let id = UniqueId::create()?;
        let work = &rank;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..nranks)
                .map(|rank| scope.spawn(move || work(&mut Self::new(&id, rank, nranks)?)))
                .collect();
            let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            results.into_iter().map(|result| result.expect("the rank did not panic")).collect()
        })
    }
}
