//! Receives that wait for a message: in the receive queue of a queue pair, or in a shared one.

use super::heap::Piece;
use super::lock::{Guard, Lock, Plain};
use super::{Entries, Event, fabric};
use crate::abi;
use crate::sync::{AtomicU32, Relaxed};

/// Scatter entries that a receive can have.
pub(crate) const MOST_ENTRIES: usize = 32;

/// A posted receive.
#[derive(Clone, Copy)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) count: usize,
    pub(crate) entries: [abi::ibv_sge; MOST_ENTRIES],
}

/// A ring of receives. Its user locks it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct ReceiveRing {
    ring: Piece,
    capacity: u32,
    most_entries: u32,
    taken: u64,
    posted: u64,
}

impl ReceiveRing {
    /// None if there is no memory.
    pub(crate) fn new(capacity: u32, most_entries: u32) -> Option<Self> {
        let words = Self::words(most_entries) * capacity as usize;
        let ring = if words == 0 { Piece::default() } else { fabric().heap.allocate(words)? };
        Some(Self { ring, capacity, most_entries, taken: 0, posted: 0 })
    }

    fn words(most_entries: u32) -> usize {
        2 + 2 * most_entries as usize
    }

    pub(crate) fn free(&mut self) {
        fabric().heap.free(self.ring);
        *self = Self::default();
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) fn most_entries(&self) -> u32 {
        self.most_entries
    }

    pub(crate) fn waiting(&self) -> u32 {
        (self.posted - self.taken) as u32
    }

    pub(crate) fn clear(&mut self) {
        self.taken = self.posted;
    }

    /// Adds a receive. The caller has checked that there is a place, and the number of entries.
    pub(crate) fn push(&mut self, wr_id: u64, entries: &[abi::ibv_sge]) {
        let words = Self::words(self.most_entries);
        let place = (self.posted % u64::from(self.capacity)) as usize * words;
        let ring = &fabric().heap.words(self.ring)[place..][..words];
        ring[0].store(wr_id, Relaxed);
        ring[1].store(entries.len() as u64, Relaxed);
        for (pair, entry) in ring[2..].chunks_exact(2).zip(entries) {
            pair[0].store(entry.addr, Relaxed);
            pair[1].store(u64::from(entry.length) | u64::from(entry.lkey) << 32, Relaxed);
        }
        self.posted += 1;
    }

    /// Takes the oldest receive.
    pub(crate) fn pop(&mut self) -> Option<Receive> {
        if self.taken == self.posted {
            return None;
        }
        let words = Self::words(self.most_entries);
        let place = (self.taken % u64::from(self.capacity)) as usize * words;
        let ring = &fabric().heap.words(self.ring)[place..][..words];
        let count = (ring[1].load(Relaxed) as usize).min(MOST_ENTRIES);
        let empty = abi::ibv_sge { addr: 0, length: 0, lkey: 0 };
        let mut receive =
            Receive { wr_id: ring[0].load(Relaxed), count, entries: [empty; MOST_ENTRIES] };
        for (entry, pair) in receive.entries[..count].iter_mut().zip(ring[2..].chunks_exact(2)) {
            let word = pair[1].load(Relaxed);
            entry.addr = pair[0].load(Relaxed);
            (entry.length, entry.lkey) = (word as u32, (word >> 32) as u32);
        }
        self.taken += 1;
        Some(receive)
    }
}

/// A receive queue that several queue pairs share.
#[repr(C)]
pub(crate) struct SharedReceiveQueue {
    owner: AtomicU32,
    context: AtomicU32,
    /// Receives that were posted and whose completion was not polled.
    outstanding: AtomicU32,
    state: Lock<Shared>,
}

/// What the lock protects.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) ring: ReceiveRing,
    pub(crate) domain: u32,
    /// An event is raised once when fewer receives wait; 0 is off.
    pub(crate) limit: u32,
    object: u64,
}

impl Plain for Shared {}

impl Entries for SharedReceiveQueue {
    fn owner(&self) -> &AtomicU32 {
        &self.owner
    }
}

impl SharedReceiveQueue {
    /// Begins a use of the entry. False if there is no memory.
    pub(crate) fn open(&self, context: u32, domain: u32, capacity: u32, most_entries: u32) -> bool {
        let Some(ring) = ReceiveRing::new(capacity, most_entries) else { return false };
        *self.state.lock() = Shared { ring, domain, limit: 0, object: 0 };
        self.context.store(context, Relaxed);
        self.outstanding.store(0, Relaxed);
        true
    }

    pub(crate) fn set_object(&self, object: u64) {
        self.state.lock().object = object;
    }

    pub(crate) fn lock(&self) -> Guard<'_, Shared> {
        self.state.lock()
    }

    pub(crate) fn destroy(&self) {
        self.state.lock().ring.free();
        self.release();
    }

    /// Counts one more receive, unless the queue is full.
    pub(crate) fn take_place(&self, capacity: u32) -> bool {
        take_place(&self.outstanding, capacity)
    }

    /// Takes the oldest receive, and raises the event if fewer than the limit are left.
    pub(crate) fn pop(&self) -> Option<(Receive, u32)> {
        let mut state = self.state.lock();
        let receive = state.ring.pop()?;
        let domain = state.domain;
        if state.limit > state.ring.waiting() {
            state.limit = 0;
            let object = state.object;
            drop(state);
            let event = Event { object, kind: abi::IBV_EVENT_SRQ_LIMIT_REACHED, port: 0 };
            fabric().contexts[self.context.load(Relaxed) as usize].push(event);
        }
        Some((receive, domain))
    }

    /// A completion of one of its receives was polled.
    pub(super) fn polled(&self) {
        free_place(&self.outstanding);
    }
}

/// Counts one more receive, unless the queue is full.
pub(super) fn take_place(outstanding: &AtomicU32, capacity: u32) -> bool {
    let more = |count| (count < capacity).then_some(count + 1);
    outstanding.fetch_update(Relaxed, Relaxed, more).is_ok()
}

/// Counts one receive less.
pub(super) fn free_place(outstanding: &AtomicU32) {
    let _ = outstanding.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
}
