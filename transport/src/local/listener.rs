//! Where the ranks of this process can be found by each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::Inbox;

/// A digest of the communicator's secret, and the rank.
pub(crate) type Key = ([u8; 32], Rank);

/// A rank that can be found.
#[derive(Debug)]
struct Entry {
    inbox: Weak<Inbox>,
    /// Who has connected to it. A rank may do that, send what it has to send and leave before this one has connected in turn.
    visitors: Vec<(Rank, Arc<Inbox>)>,
}

/// One per process, as threads of a process have nothing else in common. It keeps visitors alive as long as the rank that they visited.
static RANKS: Mutex<Option<HashMap<Key, Entry>>> = Mutex::new(None);

fn ranks() -> MutexGuard<'static, Option<HashMap<Key, Entry>>> {
    RANKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rank's entry, which ends with it.
#[derive(Debug)]
pub(crate) struct Listener(Key);

impl Listener {
    /// Makes a rank known.
    pub(crate) fn start(key: Key, inbox: &Arc<Inbox>) -> Result<Self, LinkError> {
        let mut ranks = ranks();
        let ranks = ranks.get_or_insert_default();
        if ranks.contains_key(&key) {
            return Err(LinkError::Misuse {
                what: "two endpoints of one communicator have the same rank",
            });
        }
        ranks.insert(key, Entry { inbox: Arc::downgrade(inbox), visitors: Vec::new() });
        Ok(Self(key))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let entry = ranks().as_mut().and_then(|ranks| ranks.remove(&self.0));
        // Without the lock: the last to let go of an inbox frees it.
        drop(entry);
    }
}

/// The inbox of rank `peer` of the communicator that `me` is a rank of: it is there, or has visited `me` before it left. `mine` is
/// the inbox of `me`.
pub(crate) fn visit(me: Key, mine: &Arc<Inbox>, peer: Rank) -> Option<Arc<Inbox>> {
    let mut ranks = ranks();
    let ranks = ranks.as_mut()?;
    if let Some(there) = ranks.get_mut(&(me.0, peer))
        && let Some(inbox) = there.inbox.upgrade()
    {
        if peer != me.1 {
            there.visitors.push((me.1, Arc::clone(mine)));
        }
        return Some(inbox);
    }
    let visitors = &ranks.get(&me)?.visitors;
    visitors.iter().find(|(rank, _)| *rank == peer).map(|(_, inbox)| Arc::clone(inbox))
}
