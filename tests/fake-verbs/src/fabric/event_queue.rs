//! Events that wait for one process: those of a completion channel, or of a device context. Its
//! descriptor can be read as long as an event waits.

use super::lock::{Lock, Plain};
use super::{Entries, process};
use crate::sync::{AtomicU32, Relaxed};

const MOST_EVENTS: usize = 1024;

/// What happened, and to which object of the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Event {
    /// Address of the object in the owner; 0 for events of a port or a device.
    pub(crate) object: u64,
    /// Kind of an asynchronous event (`ibv_event_type`).
    pub(crate) kind: u32,
    pub(crate) port: u32,
}

#[repr(C)]
pub(crate) struct EventQueue {
    owner: AtomicU32,
    device: AtomicU32,
    /// An event descriptor of the owner, as a semaphore: its count is the number of events.
    descriptor: AtomicU32,
    /// How often the entry was used.
    generation: AtomicU32,
    waiting: Lock<Waiting>,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Waiting {
    first: u32,
    count: u32,
    events: [Event; MOST_EVENTS],
}

impl Plain for Waiting {}

impl Entries for EventQueue {
    fn owner(&self) -> &AtomicU32 {
        &self.owner
    }
}

impl EventQueue {
    /// Begins a use of the entry, which the caller has claimed.
    pub(crate) fn open(&self, device: u32, descriptor: i32) {
        let mut waiting = self.waiting.lock();
        (waiting.first, waiting.count) = (0, 0);
        self.generation.fetch_add(1, Relaxed);
        self.device.store(device, Relaxed);
        self.descriptor.store(descriptor as u32, Relaxed);
    }

    pub(crate) fn device(&self) -> u32 {
        self.device.load(Relaxed)
    }

    /// Adds an event. The oldest stay if there are too many.
    pub(crate) fn push(&self, event: Event) {
        let Some(owner) = self.process() else { return };
        let mut waiting = self.waiting.lock();
        if waiting.count as usize == MOST_EVENTS {
            return;
        }
        let place = (waiting.first + waiting.count) as usize % MOST_EVENTS;
        waiting.events[place] = event;
        waiting.count += 1;
        // Under the lock, so that the entry is not used for something else meanwhile.
        let descriptor = self.descriptor.load(Relaxed) as i32;
        process::signal(owner, descriptor, self.generation.load(Relaxed));
    }

    /// Takes the oldest event, after one was read from the descriptor.
    pub(crate) fn pop(&self) -> Option<Event> {
        let mut waiting = self.waiting.lock();
        if waiting.count == 0 {
            return None;
        }
        let event = waiting.events[waiting.first as usize];
        waiting.first = (waiting.first + 1) % MOST_EVENTS as u32;
        waiting.count -= 1;
        Some(event)
    }

    /// Drops all events of an object that ends, and returns how many there were. The caller reads
    /// as many from the descriptor.
    pub(crate) fn forget(&self, object: u64) -> u32 {
        let mut waiting = self.waiting.lock();
        let (first, count) = (waiting.first as usize, waiting.count as usize);
        let mut kept = 0;
        for i in 0..count {
            let event = waiting.events[(first + i) % MOST_EVENTS];
            if event.object != object {
                waiting.events[(first + kept) % MOST_EVENTS] = event;
                kept += 1;
            }
        }
        waiting.count = kept as u32;
        (count - kept) as u32
    }
}
