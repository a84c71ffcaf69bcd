//! The proofs that a process keeps, so that its ranks and communicators prove each schedule once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use maypole_algorithms::schedule::Channel;
use maypole_algorithms::verify::{Proved, prove};
use maypole_algorithms::{Collective, Schedule};

use crate::error::Error;
use crate::process::PerProcess;

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

/// Proves `schedule`, or returns its proof if there is one. Waits if another thread is making it.
pub(crate) fn proved(schedule: Schedule) -> Result<Proved, Error> {
    let key = ProofKey {
        collective: schedule.collective,
        name: schedule.name,
        detail: schedule.detail.clone(),
        nranks: schedule.nranks,
        parts: schedule.parts,
        channels: schedule.channels,
    };
    let steps = |rank| (0..schedule.lanes(rank)).map(move |lane| (rank, lane));
    let steps = (0..schedule.nranks).flat_map(steps);
    let steps = steps.map(|(rank, lane)| u64::from(schedule.steps(rank, lane))).sum();
    let proof = entry(key, steps);
    let result = proof.get_or_init(|| prove(schedule).map_err(|c| c.to_string()));
    result.clone().map_err(|what| Error::Internal { what })
}

/// The kept proof of that key, finished or not.
fn entry(key: ProofKey, steps: u64) -> SharedProof {
    static PROOFS: PerProcess<Mutex<Proofs>> = PerProcess::new();
    // A thread that panicked cannot have left the table half changed.
    let mut proofs = PROOFS.get().lock().unwrap_or_else(PoisonError::into_inner);
    let Proofs { known, order, steps: total } = &mut *proofs;
    if let Some((proof, _)) = known.get(&key) {
        return proof.clone();
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
    proof
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
        };
        let first = entry(key(0), 10);
        assert!(Arc::ptr_eq(&first, &entry(key(0), 10)));
        entry(key(1), MAX_KEPT_STEPS);
        assert!(!Arc::ptr_eq(&first, &entry(key(0), 10)));
        let of = |schedule: Schedule| proved(schedule).expect("a proof").schedule().name;
        assert_eq!((of(one_shot::schedule(3)), of(ring::schedule(3))), ("oneshot", "ring"));
    }
}
