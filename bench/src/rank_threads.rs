//! The ranks of one process, each a thread: what they exchange with one another and, together, with the other processes.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::launch::{LaunchExchange, MAX_CONTRIBUTION};
use crate::status::Failure;

/// One rank's end.
pub(crate) struct Member {
    crew: Arc<Crew>,
    /// Its number among the ranks of this process.
    pub(crate) index: u32,
}

struct Crew {
    state: Mutex<State>,
    turn: Condvar,
}

struct State {
    exchange: Box<dyn LaunchExchange>,
    given: Vec<Option<Vec<u8>>>,
    /// How many exchanges have ended.
    rounds: u64,
    /// What the last one brought, by rank.
    gathered: Arc<Vec<Vec<u8>>>,
    /// The last exchange failed, and so will all others.
    failed: Option<String>,
    /// A member has ended: exchanges that have not ended will not.
    gone: bool,
}

/// The members of this process, `count` of them, of a run whose processes talk by `exchange`.
pub(crate) fn crew(exchange: Box<dyn LaunchExchange>, count: u32) -> Vec<Member> {
    let state = State {
        exchange,
        given: vec![None; count as usize],
        rounds: 0,
        gathered: Arc::default(),
        failed: None,
        gone: false,
    };
    let crew = Arc::new(Crew { state: Mutex::new(state), turn: Condvar::new() });
    (0..count).map(|index| Member { crew: Arc::clone(&crew), index }).collect()
}

impl Member {
    /// Gives `mine` to all ranks of all processes; returns what each of them gave, by rank, when all have.
    pub(crate) fn all_gather(&self, mine: &[u8]) -> Result<Arc<Vec<Vec<u8>>>, Failure> {
        let mut state = self.crew.lock();
        state.given[self.index as usize] = Some(mine.to_vec());
        let round = state.rounds;
        if state.given.iter().all(Option::is_some) {
            match state.meet() {
                Ok(all) => state.gathered = Arc::new(all),
                Err(error) => state.failed = Some(format!("the other processes: {error}")),
            }
            state.rounds += 1;
            self.crew.turn.notify_all();
        }
        while state.rounds == round {
            if state.gone {
                return Err(Failure::system("another rank of this process has ended"));
            }
            state = self.crew.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
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

    /// The same for numbers, as many as there are in every rank's `mine`.
    pub(crate) fn numbers(&self, mine: &[f64]) -> Result<Vec<Vec<f64>>, Failure> {
        let bytes: Vec<u8> = mine.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut all: Vec<Vec<f64>> = Vec::new();
        // Ranks of one process share a contribution to the exchange, and each is announced by its length.
        let share = MAX_CONTRIBUTION / 2 / self.crew.lock().given.len() / 8 * 8;
        for piece in bytes.chunks(share) {
            let gathered = self.all_gather(piece)?;
            all.resize_with(gathered.len(), Vec::new);
            for (numbers, bytes) in all.iter_mut().zip(gathered.iter()) {
                if bytes.len() != piece.len() {
                    return Err(Failure::internal("the ranks are out of step"));
                }
                numbers.extend(bytes.as_chunks().0.iter().map(|&eight| f64::from_le_bytes(eight)));
            }
        }
        Ok(all)
    }
}

impl Drop for Member {
    /// The others must not wait for one that is gone.
    fn drop(&mut self) {
        let mut state = self.crew.lock();
        state.gone = true;
        self.crew.turn.notify_all();
    }
}

impl Crew {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is inside is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Exchanges what all members gave with the other processes.
    fn meet(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut message = Vec::new();
        for bytes in self.given.iter_mut().filter_map(Option::take) {
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
                        "a broken contribution",
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

    /// Two processes that say the same.
    struct Twice;

    impl LaunchExchange for Twice {
        fn all_gather(&mut self, mine: &[u8]) -> io::Result<Vec<Vec<u8>>> {
            assert!(mine.len() <= MAX_CONTRIBUTION);
            Ok(vec![mine.to_vec(), mine.to_vec()])
        }
    }

    fn each<T: Send>(count: u32, run: impl Fn(Member) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> =
                crew(Box::new(Twice), count).into_iter().map(|m| scope.spawn(|| run(m))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn members_get_what_all_gave_in_order_again_and_again() {
        let all = each(3, |member| {
            for round in 0..100 {
                let gathered = member.all_gather(&[member.index as u8, round]).unwrap();
                let expected: Vec<_> = [0, 1, 2, 0, 1, 2].map(|index| vec![index, round]).into();
                assert_eq!(*gathered, expected);
            }
            member.barrier().is_ok()
        });
        assert_eq!(all, [true; 3]);
    }

    #[test]
    fn more_numbers_than_fit_at_once_arrive() {
        let all = each(2, |member| {
            let mine: Vec<f64> = (0..200_000).map(|i| f64::from(i + member.index)).collect();
            let numbers = member.numbers(&mine).unwrap();
            numbers.iter().map(|n| (n.len(), n[199_999])).collect::<Vec<_>>()
        });
        let expected = [0, 1, 0, 1].map(|index| (200_000, f64::from(199_999 + index)));
        assert_eq!(all[0], expected);
        assert_eq!(all[1], expected);
    }

    #[test]
    fn nobody_waits_for_a_member_that_is_gone() {
        let all = each(2, |member| if member.index == 0 { Ok(()) } else { member.barrier() });
        assert!(all[1].is_err());
    }
}
