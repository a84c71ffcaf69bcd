//! The proofs of a process: ranks that are threads of one process, and communicators of the same shape, prove a schedule once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::{Proved, prove};
use maypole_algorithms::{Collective, Schedule};

use crate::error::Error;
use crate::process;

/// What defines a schedule. A hierarchy's components and grouping are in its detail.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ProofKey {
    collective: Collective,
    name: &'static str,
    detail: Option<Arc<str>>,
    nranks: u32,
    parts: u32,
    channels: Channel,
    /// A child made by fork proves for itself: a proof that was being made when it was forked is never done there.
    process: u32,
}

type SharedProof = Arc<OnceLock<Result<Proved, String>>>;

#[derive(Default)]
struct Proofs {
    known: HashMap<ProofKey, (SharedProof, u64)>,
    /// In the order in which they were made, to be forgotten in the same.
    order: VecDeque<ProofKey>,
    steps: u64,
}

/// Steps of all schedules together whose proofs are kept: some hundred MiB at most.
const MAX_KEPT_STEPS: u64 = 1 << 20;

/// How often the lock is tried before the proof is made without asking. It is held for less than a microsecond, unless it was held by
/// another thread when this process was forked.
const LOCK_ATTEMPTS: u32 = 10_000;

/// Proves `schedule`, or finds the proof. Where another thread is at it, waits for that.
pub(crate) fn proved(schedule: Schedule) -> Result<Proved, Error> {
    let key = ProofKey {
        collective: schedule.collective,
        name: schedule.name,
        detail: schedule.detail.clone(),
        nranks: schedule.nranks,
        parts: schedule.parts,
        channels: schedule.channels,
        process: process::generation(),
    };
    let steps = |rank| (0..schedule.lanes(rank)).map(move |lane| (rank, lane));
    let steps = (0..schedule.nranks).flat_map(steps);
    let steps = steps.map(|(rank, lane)| u64::from(schedule.steps(rank, lane))).sum();
    let outcome = entry(key, steps).unwrap_or_default();
    let result = outcome.get_or_init(|| prove(schedule).map_err(|c| c.to_string()));
    result.clone().map_err(|what| Error::Internal { what })
}

/// The place of that proof, done or not; None if that cannot be said.
fn entry(key: ProofKey, steps: u64) -> Option<SharedProof> {
    static PROOFS: Mutex<Option<Proofs>> = Mutex::new(None);
    let mut proofs = (0..LOCK_ATTEMPTS).find_map(|_| match PROOFS.try_lock() {
        Ok(proofs) => Some(proofs),
        Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
        Err(TryLockError::WouldBlock) => {
            std::thread::yield_now();
            None
        }
    })?;
    let Proofs { known, order, steps: total } = proofs.get_or_insert_default();
    if let Some((outcome, _)) = known.get(&key) {
        return Some(outcome.clone());
    }
    let outcome = SharedProof::default();
    known.insert(key.clone(), (outcome.clone(), steps));
    order.push_back(key);
    *total += steps;
    while *total > MAX_KEPT_STEPS && order.len() > 1 {
        let Some((_, steps)) = order.pop_front().and_then(|oldest| known.remove(&oldest)) else {
            break;
        };
        *total -= steps;
    }
    Some(outcome)
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::collective::all_reduce::{one_shot, ring};

    use super::*;

    #[test]
    fn threads_share_a_proof_and_many_do_not_pile_up() {
        let trees = |schedule: Schedule| {
            let of = |schedule| proved(schedule).expect("a proof").facts().clone();
            std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(|| of(schedule.clone())));
                threads.map(|thread| thread.join().expect("a thread"))
            })
        };
        let facts = trees(ring::schedule(5));
        assert!(facts.iter().all(|f| *f == facts[0]));
        // Each call finds the same entry, as long as it is kept.
        let key = |nranks| ProofKey {
            collective: Collective::AllReduce,
            name: "a test's own",
            detail: None,
            nranks,
            parts: 1,
            channels: 1,
            process: 0,
        };
        let first = entry(key(0), 10).expect("nobody holds the lock");
        assert!(Arc::ptr_eq(&first, &entry(key(0), 10).expect("nobody holds the lock")));
        entry(key(1), MAX_KEPT_STEPS);
        assert!(!Arc::ptr_eq(&first, &entry(key(0), 10).expect("nobody holds the lock")));
        let of = |schedule: Schedule| proved(schedule).expect("a proof").schedule().name;
        assert_eq!((of(one_shot::schedule(3)), of(ring::schedule(3))), ("oneshot", "ring"));
    }
}
