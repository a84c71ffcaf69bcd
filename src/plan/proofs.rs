//! The proofs that a process keeps, so that its ranks and communicators prove each schedule once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::{Proved, prove};
use maypole_algorithms::{Collective, Schedule};

use crate::error::Error;
use crate::process;

/// Everything that determines a schedule. The components and grouping of a hierarchy are in its
/// detail.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ProofKey {
    collective: Collective,
    name: &'static str,
    detail: Option<Arc<str>>,
    nranks: u32,
    parts: u32,
    channels: Channel,
    /// The generation of the process. A child made by fork proves for itself, because a proof that
    /// was under way during the fork never ends in the child.
    process: u32,
}

/// A proof, or the counterexample, that is made by the first thread that needs it.
type SharedProof = Arc<OnceLock<Result<Proved, String>>>;

#[derive(Default)]
struct Proofs {
    known: HashMap<ProofKey, (SharedProof, u64)>,
    /// The keys, oldest first. The oldest proof is removed first.
    order: VecDeque<ProofKey>,
    steps: u64,
}

/// The most steps of all schedules together whose proofs are kept: some hundred MiB.
const MAX_KEPT_STEPS: u64 = 1 << 20;

/// Attempts to take the lock before the proof is made without it. The lock is held for less than a
/// microsecond, unless another thread held it when this process was forked.
const LOCK_ATTEMPTS: u32 = 10_000;

/// Proves `schedule`, or returns its proof if there is one. Waits if another thread is making it.
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
    let proof = entry(key, steps).unwrap_or_default();
    let result = proof.get_or_init(|| prove(schedule).map_err(|c| c.to_string()));
    result.clone().map_err(|what| Error::Internal { what })
}

/// The kept proof of that key, finished or not; None if the lock cannot be taken.
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
    if let Some((proof, _)) = known.get(&key) {
        return Some(proof.clone());
    }
    let proof = SharedProof::default();
    known.insert(key.clone(), (proof.clone(), steps));
    order.push_back(key);
    *total += steps;
    while *total > MAX_KEPT_STEPS && order.len() > 1 {
        let Some((_, steps)) = order.pop_front().and_then(|oldest| known.remove(&oldest)) else {
            break;
        };
        *total -= steps;
    }
    Some(proof)
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::collective::all_reduce::{one_shot, ring};

    use super::*;

    #[test]
    fn threads_share_a_proof_and_old_proofs_are_removed() {
        let trees = |schedule: Schedule| {
            let of = |schedule| proved(schedule).expect("a proof").facts().clone();
            std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(|| of(schedule.clone())));
                threads.map(|thread| thread.join().expect("a thread"))
            })
        };
        let facts = trees(ring::schedule(5));
        assert!(facts.iter().all(|f| *f == facts[0]));
        // Each call finds the same entry as long as it is kept.
        let key = |nranks| ProofKey {
            collective: Collective::AllReduce,
            name: "a test schedule",
            detail: None,
            nranks,
            parts: 1,
            channels: 1,
            process: 0,
        };
        let first = entry(key(0), 10).expect("no other thread holds the lock");
        assert!(Arc::ptr_eq(&first, &entry(key(0), 10).expect("no other thread holds the lock")));
        entry(key(1), MAX_KEPT_STEPS);
        assert!(!Arc::ptr_eq(&first, &entry(key(0), 10).expect("no other thread holds the lock")));
        let of = |schedule: Schedule| proved(schedule).expect("a proof").schedule().name;
        assert_eq!((of(one_shot::schedule(3)), of(ring::schedule(3))), ("oneshot", "ring"));
    }
}
