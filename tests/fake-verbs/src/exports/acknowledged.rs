//! Events that were delivered and not acknowledged. Their object cannot end.

use std::sync::{Condvar, Mutex, PoisonError};

use super::channel::discard;
use super::context::context;
use super::given;
use crate::abi;
use crate::misuse::misuse;

/// Events of one object that were delivered, and that were acknowledged. An object ends when both
/// numbers are equal.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    open: Mutex<u64>,
    changed: Condvar,
}

impl Acknowledged {
    pub(super) fn deliver(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    pub(super) fn acknowledge(&self, count: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open < count {
            misuse!(libc::EINVAL, "more events are acknowledged than were delivered");
        }
        *open = open.saturating_sub(count);
        self.changed.notify_all();
    }

    /// Waits until all events are acknowledged.
    pub(super) fn wait(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_while(open, |open| *open != 0);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Drops the events of an object that ends, and waits for those that were delivered.
pub(super) fn finish(context_of: *mut abi::ibv_context, object: u64, events: &Acknowledged) {
    let dropped = context(context_of).events().forget(object);
    discard(given!(context_of).async_fd, dropped);
    events.wait();
}
