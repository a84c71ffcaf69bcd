//! Where a process of a benchmark stands among the others, and how they talk before there is a communicator.
//!
//! Whoever started the processes gives each a [`Place`]: its number, how many there are, and an [`Exchange`]. Nothing else of a
//! launcher is known outside of this module. [`find`] asks the launchers in turn; a process that none of them started is alone.
//! Another launcher is another file here, with a `place` function that returns None where it has not started this process, and
//! a line in [`find`].

pub(crate) mod local;
mod socket;

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
    Ok(Place { rank: 0, nranks: 1, exchange: Box::new(Alone) })
}

/// True if a launcher started this process as one of several: it does not start others.
pub(crate) fn placed() -> bool {
    local::placed()
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
