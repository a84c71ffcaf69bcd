//! Timing of repeated calls. All measurements of the crate use these functions.

use std::time::{Duration, Instant};

use crate::rank_threads::RankThread;
use crate::status::Failure;

/// The time that `repetitions` calls take, one after the other.
#[inline]
pub(crate) fn time_calls<E>(
    repetitions: usize,
    mut call: impl FnMut() -> Result<(), E>,
) -> Result<Duration, E> {
    let start = Instant::now();
    for _ in 0..repetitions {
        call()?;
    }
    Ok(start.elapsed())
}

/// Seconds per call in the slowest rank. All ranks start together and make equally many calls.
pub(crate) fn slowest_seconds_per_call(
    rank: &RankThread,
    repetitions: usize,
    call: impl FnMut() -> Result<(), Failure>,
) -> Result<f64, Failure> {
    rank.barrier()?;
    let spent = time_calls(repetitions, call)?;
    rank.maximum(spent.as_secs_f64() / repetitions as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::LaunchedRank;
    use crate::rank_threads::rank_threads;

    #[test]
    fn every_repetition_is_a_call_and_a_failure_ends_them() {
        let mut calls = 0;
        let mut call = |fails_at: u32| {
            calls += 1;
            if calls == fails_at { Err(Failure::internal("it fails")) } else { Ok(()) }
        };
        assert!(time_calls(5, || call(9)).is_ok());
        assert!(time_calls(5, || call(9)).is_err());
        assert_eq!(calls, 9);
        let rank = rank_threads(LaunchedRank::alone().exchange, 1).pop().unwrap();
        assert!(slowest_seconds_per_call(&rank, 3, || Ok(())).unwrap() >= 0.0);
    }
}
