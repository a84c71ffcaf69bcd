//! A completion queue and a shared receive queue, and the peers whose queue pairs use them. A group
//! takes as many peers as its queues have room for, so that neither can ever overflow.

use std::sync::Arc;

use maypole_verbs::{CompletionQueue, SharedReceiveQueue};

use super::domain::VerbsDomain;
use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// Peers of a group, at most. Larger groups would take memory that small jobs do not need.
const MOST_PEERS: u32 = 16;

/// The queues of one port that several peers share.
#[derive(Debug)]
pub(super) struct CompletionGroup {
    pub(super) domain: Arc<VerbsDomain>,
    pub(super) completions: Arc<CompletionQueue>,
    pub(super) receives: Arc<SharedReceiveQueue>,
    most_peers: u32,
    /// Peers that have used the group. Their queue pairs may be gone.
    taken: AtomicU32,
    /// The queues have failed.
    failed: AtomicBool,
}

impl CompletionGroup {
    pub(super) fn new(domain: &Arc<VerbsDomain>) -> Result<Arc<Self>, String> {
        let failed = |error: maypole_verbs::VerbsError| format!("{}: {error}", domain.device());
        let (receives, completions) = domain.needs_per_peer();
        let fit = domain.limits.shared_receives / receives;
        let most_peers = fit.min(domain.limits.completions / completions).clamp(1, MOST_PEERS);
        let entries = completions * most_peers;
        let completions = CompletionQueue::new(&domain.channel, entries).map_err(failed)?;
        let receives =
            SharedReceiveQueue::new(&domain.memory, receives * most_peers).map_err(failed)?;
        Ok(Arc::new(Self {
            domain: domain.clone(),
            completions,
            receives,
            most_peers,
            taken: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        }))
    }

    /// Takes a place for one peer, if there is one, and posts the receives for it. Called by one
    /// thread at a time.
    pub(super) fn take_place(&self) -> Result<bool, String> {
        let taken = self.taken.load(Ordering::Relaxed);
        if taken == self.most_peers || self.has_failed() {
            return Ok(false);
        }
        let (receives, _) = self.domain.needs_per_peer();
        self.receives.post(0, receives as usize).map_err(|error| error.to_string())?;
        self.taken.store(taken + 1, Ordering::Relaxed);
        Ok(true)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn set_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }
}
