//! A completion queue and a shared receive queue, and the peers whose queue pairs use them. A group
//! takes as many peers as its queues have room for, so that neither can ever overflow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole_verbs::{CompletionQueue, SharedReceiveQueue};

use super::domain::VerbsDomain;
use super::state::{PairState, QueueRole};
use crate::Rank;
use crate::error::LinkError;

/// Peers of a group, at most. Larger groups would take memory that small jobs do not need.
const MOST_PEERS: u32 = 16;

/// The queues that several peers share.
#[derive(Debug)]
pub(super) struct CompletionGroup {
    pub(super) completions: Arc<CompletionQueue>,
    pub(super) receives: Arc<SharedReceiveQueue>,
    most_peers: u32,
    state: Mutex<GroupState>,
}

/// The peers of a group.
#[derive(Debug, Default)]
pub(super) struct GroupState {
    /// Peers that have used the group. Their queue pairs may be gone.
    taken: u32,
    pub(super) pairs: HashMap<Rank, PairState>,
    pub(super) by_queue: HashMap<u32, (Rank, QueueRole)>,
}

impl CompletionGroup {
    pub(super) fn new(domain: &VerbsDomain) -> Result<Arc<Self>, LinkError> {
        let failed = |error: maypole_verbs::VerbsError| domain.misfit(&error.to_string());
        let (receives, completions) = domain.needs_per_peer();
        let fit = domain.limits.shared_receives / receives;
        let most_peers = fit.min(domain.limits.completions / completions).clamp(1, MOST_PEERS);
        let entries = completions * most_peers;
        let completions = CompletionQueue::new(&domain.channel, entries).map_err(failed)?;
        let receives =
            SharedReceiveQueue::new(&domain.memory, receives * most_peers).map_err(failed)?;
        Ok(Arc::new(Self { completions, receives, most_peers, state: Mutex::default() }))
    }

    /// A panic under the lock is a bug of this library. The state is then useless, but memory-safe.
    pub(super) fn lock(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for one peer, if there is one, and posts the receives for it.
    pub(super) fn take_place(&self, receives: u32) -> Result<bool, String> {
        let mut state = self.lock();
        if state.taken == self.most_peers {
            return Ok(false);
        }
        self.receives.post(0, receives as usize).map_err(|error| error.to_string())?;
        state.taken += 1;
        Ok(true)
    }

    /// Handles all completions that are there. Returns whether there were any.
    pub(super) fn poll(&self, state: &mut GroupState) -> bool {
        let mut any = false;
        loop {
            let GroupState { pairs, by_queue, .. } = &mut *state;
            let mut received = 0;
            let got = self.completions.poll(|completion| {
                received += usize::from(completion.is_receive);
                let Some((peer, role)) = by_queue.get(&completion.queue) else { return };
                if let Some(pair) = pairs.get_mut(peer) {
                    any |= pair.complete(*role, &completion);
                }
            });
            // Every immediate value took a receive, in place of which another is posted before its
            // sender can learn that it was taken.
            let posted = if received > 0 { self.receives.post(0, received) } else { Ok(()) };
            let got = match (got, posted) {
                (Ok(got), Ok(())) => got,
                (Err(error), _) | (_, Err(error)) => {
                    let why = format!("the completion queue failed: {error}");
                    for pair in pairs.values_mut().filter(|pair| pair.failure.is_none()) {
                        pair.fail_with(why.clone());
                    }
                    return true;
                }
            };
            if got == 0 {
                return any;
            }
        }
    }
}
