//! What the bootstrap roots of this process wait for. A rank that is missing at one of them and
//! waits at another probably has the wrong unique id: this proves nothing, so it only makes the log
//! clearer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use maypole_control::rank_set::RankSet;

use crate::process::PerProcess;

static ROOTS: PerProcess<Mutex<WaitingRoots>> = PerProcess::new();

/// The roots that wait for ranks, by their numbers.
#[derive(Default)]
struct WaitingRoots {
    added: u64,
    roots: BTreeMap<u64, WaitingRoot>,
}

/// What one root has told last.
struct WaitingRoot {
    nranks: u32,
    missing: RankSet,
}

/// The place of one root among those of the process, until it is dropped.
pub(super) struct WaitingEntry(u64);

impl WaitingEntry {
    pub(super) fn new() -> Self {
        let mut state = roots();
        state.added += 1;
        Self(state.added)
    }

    /// Says that of `nranks` ranks these are missing at the root. Returns those of them that wait
    /// at another root of this process, for a communicator with as many ranks.
    pub(super) fn update(&self, nranks: u32, missing: &RankSet) -> RankSet {
        roots().update(self.0, nranks, missing)
    }
}

impl Drop for WaitingEntry {
    fn drop(&mut self) {
        roots().roots.remove(&self.0);
    }
}

/// The state is valid at every moment, so a panic under the lock does no harm.
fn roots() -> MutexGuard<'static, WaitingRoots> {
    ROOTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl WaitingRoots {
    fn update(&mut self, root: u64, nranks: u32, missing: &RankSet) -> RankSet {
        self.roots.insert(root, WaitingRoot { nranks, missing: missing.clone() });
        let others = || self.roots.iter().filter(|(number, _)| **number != root);
        let waits = |rank: &u32| others().any(|(_, other)| other.waits(*rank, nranks));
        let ranks = missing.ranges().iter().flat_map(|(first, last)| *first..=*last);
        RankSet::new(ranks.filter(waits))
    }
}

impl WaitingRoot {
    /// Whether the rank has joined there, and the root waits for others.
    fn waits(&self, rank: u32, nranks: u32) -> bool {
        let listed: usize = self.missing.ranges().iter().map(|(a, b)| (b - a + 1) as usize).sum();
        let is_missing = |(first, last): &(u32, u32)| (*first..=*last).contains(&rank);
        self.nranks == nranks
            && !self.missing.is_empty()
            && listed == self.missing.len()
            && !self.missing.ranges().iter().any(is_missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_waits_with_another_id_is_found() {
        let mut roots = WaitingRoots::default();
        let mut update = |root, nranks, missing: &[u32]| {
            roots.update(root, nranks, &RankSet::new(missing.to_vec()))
        };
        assert!(update(1, 4, &[3]).is_empty());
        assert_eq!(update(2, 4, &[0, 1, 2]), RankSet::new([0, 1, 2]));
        assert_eq!(update(1, 4, &[3]), RankSet::new([3]));
        // Of another size, or complete.
        assert!(update(3, 5, &[2, 3]).is_empty());
        assert!(update(2, 4, &[]).is_empty());
        assert!(update(1, 4, &[3]).is_empty());
    }
}
