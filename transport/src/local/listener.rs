//! The registry in which ranks of one process find each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::Inbox;
use crate::process::PerProcess;

/// A digest of the communicator's secret, and the rank.
pub(crate) type LocalRankKey = ([u8; 32], Rank);

/// A rank that can be found.
#[derive(Debug)]
struct LocalRank {
    inbox: Weak<Inbox>,
    /// The ranks that have connected to it, with their inboxes. Such a rank may send all its
    /// messages and leave before this rank connects to it in turn.
    visitors: Vec<(Rank, Arc<Inbox>)>,
}

/// The ranks of this process. The registry is global, because threads of a process share nothing
/// else. It keeps a visitor's inbox alive as long as the rank that was visited.
static RANKS: PerProcess<Mutex<HashMap<LocalRankKey, LocalRank>>> = PerProcess::new();

fn ranks() -> MutexGuard<'static, HashMap<LocalRankKey, LocalRank>> {
    RANKS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rank's entry in the registry. Dropping it removes the entry.
#[derive(Debug)]
pub(crate) struct LocalListener(LocalRankKey);

impl LocalListener {
    /// Registers a rank.
    ///
    /// # Errors
    /// [`LinkError::Misuse`] if the rank is registered already.
    pub(crate) fn start(key: LocalRankKey, inbox: &Arc<Inbox>) -> Result<Self, LinkError> {
        let mut ranks = ranks();
        if ranks.contains_key(&key) {
            return Err(LinkError::Misuse {
                what: "two endpoints of one communicator have the same rank",
            });
        }
        ranks.insert(key, LocalRank { inbox: Arc::downgrade(inbox), visitors: Vec::new() });
        Ok(Self(key))
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let entry = ranks().remove(&self.0);
        // Dropped without the lock, because the last owner of an inbox unmaps it.
        drop(entry);
    }
}

/// Finds the inbox of rank `peer` of the communicator of rank `rank`: the peer is registered, or
/// has visited `rank` before it left. `own`, the inbox of `rank`, is recorded as a visitor.
pub(crate) fn find_and_visit(
    rank: LocalRankKey,
    own: &Arc<Inbox>,
    peer: Rank,
) -> Option<Arc<Inbox>> {
    let mut ranks = ranks();
    if let Some(entry) = ranks.get_mut(&(rank.0, peer))
        && let Some(inbox) = entry.inbox.upgrade()
    {
        if peer != rank.1 {
            entry.visitors.push((rank.1, Arc::clone(own)));
        }
        return Some(inbox);
    }
    let visitors = &ranks.get(&rank)?.visitors;
    visitors.iter().find(|(visitor, _)| *visitor == peer).map(|(_, inbox)| Arc::clone(inbox))
}
