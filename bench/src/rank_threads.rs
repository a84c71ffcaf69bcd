//! The ranks of one process, one thread each: exchanges among all ranks of all processes.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::launch::{LaunchExchange, MAX_CONTRIBUTION};
use crate::status::Failure;

/// One rank's access to the exchange that the ranks of a process share.
pub(crate) struct RankThread {
    shared: Arc<SharedExchange>,
    /// The number of this rank among the ranks of its process.
    pub(crate) index: u32,
}

struct SharedExchange {
    state: Mutex<SharedExchangeState>,
    /// Notified when a round ends or a rank is dropped.
    changed: Condvar,
}

struct SharedExchangeState {
    exchange: Box<dyn LaunchExchange>,
    /// What each rank of this process contributed to the present round.
    contributions: Vec<Option<Vec<u8>>>,
    /// How many rounds have ended.
    rounds: u64,
    /// The contributions to the last round, by rank.
    gathered: Arc<Vec<Vec<u8>>>,
    /// Why the last round failed. All later rounds fail for the same reason.
    failed: Option<String>,
    /// A rank was dropped, so a round that has not ended will never end.
    rank_dropped: bool,
}

/// The `count` ranks of this process, in a run whose processes talk over `exchange`.
pub(crate) fn rank_threads(exchange: Box<dyn LaunchExchange>, count: u32) -> Vec<RankThread> {
    let state = SharedExchangeState {
        exchange,
        contributions: vec![None; count as usize],
        rounds: 0,
        gathered: Arc::default(),
        failed: None,
        rank_dropped: false,
    };
    let shared = Arc::new(SharedExchange { state: Mutex::new(state), changed: Condvar::new() });
    (0..count).map(|index| RankThread { shared: Arc::clone(&shared), index }).collect()
}

impl RankThread {
    /// Contributes `mine` and waits for all ranks of all processes. Returns the contributions of
    /// all ranks, in the order of their ranks.
    pub(crate) fn all_gather(&self, mine: &[u8]) -> Result<Arc<Vec<Vec<u8>>>, Failure> {
        let mut state = self.shared.lock();
        state.contributions[self.index as usize] = Some(mine.to_vec());
        let round = state.rounds;
        // The last rank of the process to arrive talks to the other processes for all.
        if state.contributions.iter().all(Option::is_some) {
            match state.exchange_with_processes() {
                Ok(all) => state.gathered = Arc::new(all),
                Err(error) => state.failed = Some(format!("the other processes: {error}")),
            }
            state.rounds += 1;
            self.shared.changed.notify_all();
        }
        while state.rounds == round {
            if state.rank_dropped {
                return Err(Failure::system("another rank of this process has ended"));
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match &state.failed {
            Some(text) => Err(Failure::system(text.clone())),
            None => Ok(Arc::clone(&state.gathered)),
        }
    }

    /// Returns when all ranks have called it.
    pub(crate) fn barrier(&self) -> Result<(), Failure> {
        self.all_gather(&[]).map(drop)
    }

    /// The numbers of all ranks, by rank. Every rank must give equally many.
    pub(crate) fn numbers(&self, mine: &[f64]) -> Result<Vec<Vec<f64>>, Failure> {
        let bytes: Vec<u8> = mine.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut all: Vec<Vec<f64>> = Vec::new();
        // The ranks of a process share one contribution, in which each is preceded by its length.
        let piece_bytes = MAX_CONTRIBUTION / 2 / self.shared.lock().contributions.len() / 8 * 8;
        for piece in bytes.chunks(piece_bytes) {
            let gathered = self.all_gather(piece)?;
            all.resize_with(gathered.len(), Vec::new);
            for (numbers, bytes) in all.iter_mut().zip(gathered.iter()) {
                if bytes.len() != piece.len() {
                    return Err(Failure::internal(
                        "the ranks exchange different amounts of numbers; please report it",
                    ));
                }
                numbers.extend(bytes.as_chunks().0.iter().map(|&eight| f64::from_le_bytes(eight)));
            }
        }
        Ok(all)
    }

    /// The largest number of any rank.
    pub(crate) fn maximum(&self, mine: f64) -> Result<f64, Failure> {
        Ok(self.numbers(&[mine])?.iter().map(|numbers| numbers[0]).fold(f64::MIN, f64::max))
    }
}

impl Drop for RankThread {
    /// Ends the waits of the other ranks of the process.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.rank_dropped = true;
        self.shared.changed.notify_all();
    }
}

impl SharedExchange {
    fn lock(&self) -> MutexGuard<'_, SharedExchangeState> {
        // A panic cannot leave the state inconsistent: it is valid after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedExchangeState {
    /// Exchanges the contributions of this process's ranks with those of the other processes.
    fn exchange_with_processes(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut message = Vec::new();
        for bytes in self.contributions.iter_mut().filter_map(Option::take) {
            message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            message.extend_from_slice(&bytes);
        }
        let mut all = Vec::new();
        for message in self.exchange.all_gather(&message)? {
            let mut rest = &message[..];
            while let Some((&len, after)) = rest.split_first_chunk() {
                let len = u32::from_le_bytes(len) as usize;
                let Some((bytes, after)) = after.split_at_checked(len) else {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a process sent a damaged contribution",
                    ));
                };
                all.push(bytes.to_vec());
                rest = after;
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An exchange of two processes that contribute the same.
    struct TwoEqualProcesses;

    impl LaunchExchange for TwoEqualProcesses {
        fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
            assert!(mine.len() <= MAX_CONTRIBUTION);
            Ok(vec![mine.to_vec(), mine.to_vec()])
        }
    }

    fn run_ranks<T: Send>(count: u32, run: impl Fn(RankThread) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let run = &run;
            let ranks = rank_threads(Box::new(TwoEqualProcesses), count);
            let threads: Vec<_> =
                ranks.into_iter().map(|rank| scope.spawn(move || run(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_get_all_contributions_in_order_in_every_round() {
        let all = run_ranks(3, |rank| {
            for round in 0..100 {
                let gathered = rank.all_gather(&[rank.index as u8, round]).unwrap();
                let expected: Vec<_> = [0, 1, 2, 0, 1, 2].map(|index| vec![index, round]).into();
                assert_eq!(*gathered, expected);
            }
            rank.barrier().is_ok()
        });
        assert_eq!(all, [true; 3]);
    }

    #[test]
    fn more_numbers_than_fit_in_one_contribution_arrive() {
        let all = run_ranks(2, |rank| {
            let mine: Vec<f64> = (0..200_000).map(|i| f64::from(i + rank.index)).collect();
            let numbers = rank.numbers(&mine).unwrap();
            numbers.iter().map(|n| (n.len(), n[199_999])).collect::<Vec<_>>()
        });
        let expected = [0, 1, 0, 1].map(|index| (200_000, f64::from(199_999 + index)));
        assert_eq!(all[0], expected);
        assert_eq!(all[1], expected);
    }

    #[test]
    fn the_maximum_is_over_all_ranks() {
        assert_eq!(run_ranks(2, |rank| rank.maximum(-f64::from(rank.index)).unwrap()), [0.0, 0.0]);
    }

    #[test]
    fn no_rank_waits_for_a_rank_that_was_dropped() {
        let all = run_ranks(2, |rank| if rank.index == 0 { Ok(()) } else { rank.barrier() });
        assert!(all[1].is_err());
    }
}
