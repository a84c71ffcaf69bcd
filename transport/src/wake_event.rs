//! The `eventfd` by which a doorbell wakes a thread that sleeps on descriptors.
//!
//! Threads of the process find it by the address of the doorbell. A child made by fork finds none,
//! so that it wakes nobody in its parent.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::process::PerProcess;

/// An `eventfd`.
#[derive(Debug)]
pub(crate) struct WakeEvent(OwnedFd);

/// The events of this process, by the addresses of their doorbells.
static EVENTS: PerProcess<Mutex<HashMap<usize, Arc<WakeEvent>>>> = PerProcess::new();

fn events() -> MutexGuard<'static, HashMap<usize, Arc<WakeEvent>>> {
    EVENTS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The event of the doorbell at this address, if it has one in this process.
pub(crate) fn find(doorbell: usize) -> Option<Arc<WakeEvent>> {
    events().get(&doorbell).cloned()
}

impl WakeEvent {
    /// Makes the event of the doorbell at this address, which must have none.
    pub(crate) fn register(doorbell: usize) -> io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let event = Arc::new(Self(event));
        events().insert(doorbell, event.clone());
        Ok(event)
    }

    /// Forgets the event of the doorbell at this address.
    pub(crate) fn unregister(doorbell: usize) {
        events().remove(&doorbell);
    }

    /// Wakes the thread that sleeps on the descriptor, or the next one that does.
    pub(crate) fn signal(&self) {
        // If the counter is full, the thread is awake.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets the signals so far. Returns whether there were any.
    pub(crate) fn reset(&self) -> bool {
        // It does not block.
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for WakeEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
