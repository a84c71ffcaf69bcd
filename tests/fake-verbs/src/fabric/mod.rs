//! The memory that all processes of one namespace share: devices and networks, and of each object
//! what other processes need.
//!
//! A process that posts work does all of it in the thread that posts: it looks up the queue pair
//! and the regions of the other end here, copies between the two processes, and writes both
//! completions.

mod completion_queue;
mod control;
mod event_queue;
mod heap;
mod join;
mod lock;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod queue_pair;
mod receive_queue;
pub(crate) mod region;
mod settings;

use std::cell::Cell;
use std::sync::OnceLock;

pub(crate) use self::completion_queue::{CompletionQueue, Entry, Source};
pub(crate) use self::event_queue::{Event, EventQueue};
use self::heap::Heap;
use self::lock::Lock;
use self::network::Network;
use self::process::Process;
pub(crate) use self::queue_pair::{QueuePair, Responder};
pub(crate) use self::receive_queue::{Receive, SharedReceiveQueue};
pub(crate) use self::region::{Fault, REMOTE, Region, RegionData};
pub(crate) use self::settings::{Order, Settings};
use crate::sync::{AcqRel, Acquire, AtomicU32, Relaxed, Release};

const MOST_PROCESSES: usize = 128;
const MOST_CONTEXTS: usize = 512;
const MOST_CHANNELS: usize = 1024;
const MOST_COMPLETION_QUEUES: usize = 4096;
const MOST_SHARED_QUEUES: usize = 1024;
const MOST_QUEUE_PAIRS: usize = 8192;
const MOST_REGIONS: usize = 1 << 16;

/// All of it. Zeros are a valid value.
#[repr(C)]
pub(crate) struct Fabric {
    /// Counts changes of what a path through the network depends on.
    pub(crate) network_changes: AtomicU32,
    /// The next number of a protection domain.
    next_domain: AtomicU32,
    /// Where the search for a free entry of each table begins.
    hints: [AtomicU32; 6],
    pub(crate) settings: Settings,
    pub(crate) network: Lock<Network>,
    /// Held while a word is changed by an atomic operation.
    pub(crate) atomics: Lock<u32>,
    processes: [Process; MOST_PROCESSES],
    pub(crate) contexts: [EventQueue; MOST_CONTEXTS],
    pub(crate) channels: [EventQueue; MOST_CHANNELS],
    pub(crate) completion_queues: [CompletionQueue; MOST_COMPLETION_QUEUES],
    pub(crate) shared_queues: [SharedReceiveQueue; MOST_SHARED_QUEUES],
    pub(crate) queue_pairs: [QueuePair; MOST_QUEUE_PAIRS],
    pub(crate) regions: [Region; MOST_REGIONS],
    heap: Heap,
}

static FABRIC: OnceLock<&'static Fabric> = OnceLock::new();

thread_local! {
    /// The fabric that this thread joins at this moment.
    static JOINING: Cell<Option<&'static Fabric>> = const { Cell::new(None) };
}

/// The fabric of this process. The first call joins it.
pub(crate) fn fabric() -> &'static Fabric {
    match FABRIC.get() {
        Some(fabric) => fabric,
        None => JOINING.get().unwrap_or_else(join::join),
    }
}

/// An entry of a table, with the process that owns it.
pub(crate) trait Entries {
    /// 0 if it is free, or the place of the owner plus one.
    fn owner(&self) -> &AtomicU32;

    /// The process that owns it, if any does.
    fn process(&self) -> Option<u32> {
        self.owner().load(Acquire).checked_sub(1)
    }

    /// Makes the entry free.
    fn release(&self) {
        self.owner().store(0, Release);
    }
}

/// The tables, as indices of `hints`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Table {
    Contexts,
    Channels,
    CompletionQueues,
    SharedQueues,
    QueuePairs,
    Regions,
}

impl Fabric {
    /// Claims a free entry. Entries are used in turn, so that a number is not used again soon.
    pub(crate) fn claim<T: Entries>(&self, table: Table, entries: &[T]) -> Option<usize> {
        let hint = &self.hints[table as usize];
        for _ in 0..entries.len() {
            // The first entry stays unused: no handle, key or number is 0.
            let index = hint.fetch_add(1, Relaxed) as usize % (entries.len() - 1) + 1;
            let owner = entries[index].owner();
            if owner.compare_exchange(0, process::me() + 1, AcqRel, Relaxed).is_ok() {
                return Some(index);
            }
        }
        None
    }

    /// A number for a protection domain that no other has.
    pub(crate) fn new_domain(&self) -> u32 {
        self.next_domain.fetch_add(1, Relaxed) + 1
    }

    /// Frees what a dead process had.
    fn reap(&self, dead: u32) {
        let of_dead = |owner: &AtomicU32| owner.load(Acquire) == dead + 1;
        for it in self.queue_pairs.iter().filter(|it| of_dead(it.owner())) {
            it.destroy();
        }
        for it in self.shared_queues.iter().filter(|it| of_dead(it.owner())) {
            it.destroy();
        }
        for it in self.completion_queues.iter().filter(|it| of_dead(it.owner())) {
            it.destroy();
        }
        for it in self.regions.iter().filter(|it| of_dead(it.owner())) {
            it.destroy();
        }
        for it in self.channels.iter().chain(&self.contexts).filter(|it| of_dead(it.owner())) {
            it.release();
        }
    }

    /// Tells every context of a device of an event.
    pub(crate) fn announce(&self, device: u32, event: Event) {
        for context in &self.contexts {
            if context.process().is_some() && context.device() == device {
                context.push(event);
            }
        }
    }

    /// Says that paths through the network may have changed.
    pub(crate) fn network_has_changed(&self) {
        self.network_changes.fetch_add(1, Release);
    }
}
