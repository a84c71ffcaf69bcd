//! Where the ranks of this process can be found by each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::Rank;
use crate::error::LinkError;
use crate::inbox::Inbox;

/// A digest of the communicator's secret, and the rank.
pub(crate) type Key = ([u8; 32], Rank);

/// One per process, as threads of a process have nothing else in common. It keeps nothing alive.
static RANKS: Mutex<Option<HashMap<Key, Weak<Inbox>>>> = Mutex::new(None);

fn ranks() -> MutexGuard<'static, Option<HashMap<Key, Weak<Inbox>>>> {
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
        ranks.insert(key, Arc::downgrade(inbox));
        Ok(Self(key))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(ranks) = ranks().as_mut() {
            ranks.remove(&self.0);
        }
    }
}

/// The inbox of a rank of this process.
pub(crate) fn find(key: Key) -> Option<Arc<Inbox>> {
    ranks().as_ref()?.get(&key)?.upgrade()
}
