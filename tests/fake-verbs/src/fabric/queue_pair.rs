//! The part of a queue pair that other processes need: its state, and its receiving side.

use super::lock::{Guard, Lock, Plain};
use super::receive_queue::{ReceiveRing, free_place, take_place};
use super::{Entries, Entry, Event, MOST_QUEUE_PAIRS, Receive, Source, fabric};
use crate::abi;
use crate::sync::{AcqRel, Acquire, AtomicU32, AtomicU64, Relaxed, Release};

#[repr(C)]
pub(crate) struct QueuePair {
    owner: AtomicU32,
    context: AtomicU32,
    /// The number of the queue pair: the place in the table, and above it how often it was used.
    number: AtomicU32,
    /// An `ibv_qp_state`.
    state: AtomicU32,
    /// Work requests that have left the send queue since the last reset.
    sent: AtomicU64,
    /// Receives that were posted and whose completion was not polled.
    outstanding: AtomicU32,
    responder: Lock<Responder>,
}

/// The receiving side.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Responder {
    pub(crate) kind: u32,
    pub(crate) domain: u32,
    pub(crate) device: u32,
    pub(crate) send_queue: u32,
    pub(crate) receive_queue: u32,
    /// The shared receive queue; 0 is none.
    pub(crate) shared: u32,
    /// What `ibv_modify_qp` has set.
    pub(crate) attributes: abi::ibv_qp_attr,
    pub(crate) ring: ReceiveRing,
    /// Whether a message has arrived since the queue pair can receive.
    pub(crate) established: u32,
    object: u64,
}

impl Plain for Responder {}

impl Entries for QueuePair {
    fn owner(&self) -> &AtomicU32 {
        &self.owner
    }
}

/// The queue pair with this number, if it exists.
pub(crate) fn find(number: u32) -> Option<(u32, &'static QueuePair)> {
    let place = number % MOST_QUEUE_PAIRS as u32;
    let it = &fabric().queue_pairs[place as usize];
    (it.process().is_some() && it.number() == number).then_some((place, it))
}

impl QueuePair {
    /// Begins a use of the entry `place`.
    pub(crate) fn open(&self, place: usize, context: u32, responder: Responder) {
        let most = MOST_QUEUE_PAIRS as u32;
        let uses = (self.number.load(Relaxed) / most + 1) % ((1 << 24) / most);
        *self.responder.lock() = responder;
        self.context.store(context, Relaxed);
        self.sent.store(0, Relaxed);
        self.outstanding.store(0, Relaxed);
        self.state.store(abi::IBV_QPS_RESET, Relaxed);
        // Numbers 0 and 1 are those of the management queue pairs; the first place is unused.
        self.number.store(uses * most + place as u32, Release);
    }

    /// A receiving side with a ring of its own. None if there is no memory.
    pub(crate) fn responder(capacity: u32, most_entries: u32) -> Option<Responder> {
        let ring = ReceiveRing::new(capacity, most_entries)?;
        // SAFETY: all fields of the attributes are numbers or arrays of them, for which zeros are
        // valid.
        let attributes = unsafe { std::mem::zeroed() };
        Some(Responder {
            kind: 0,
            domain: 0,
            device: 0,
            send_queue: 0,
            receive_queue: 0,
            shared: 0,
            attributes,
            ring,
            established: 0,
            object: 0,
        })
    }

    pub(crate) fn set_object(&self, object: u64) {
        self.responder.lock().object = object;
    }

    pub(crate) fn number(&self) -> u32 {
        self.number.load(Acquire)
    }

    pub(crate) fn state(&self) -> u32 {
        self.state.load(Acquire)
    }

    pub(crate) fn set_state(&self, state: u32) {
        self.state.store(state, Release);
    }

    pub(crate) fn lock(&self) -> Guard<'_, Responder> {
        self.responder.lock()
    }

    pub(super) fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Release);
    }

    /// Work requests that have left the send queue: their completion, or a later one, was polled.
    pub(crate) fn sent_count(&self) -> u64 {
        self.sent.load(Acquire)
    }

    pub(super) fn received(&self) {
        free_place(&self.outstanding);
    }

    /// Counts one more receive, unless the queue is full.
    pub(crate) fn take_place(&self, capacity: u32) -> bool {
        take_place(&self.outstanding, capacity)
    }

    /// Drops all that waits, as the state "reset" demands.
    pub(crate) fn reset(&self, place: u32) {
        let mut responder = self.responder.lock();
        self.set_state(abi::IBV_QPS_RESET);
        responder.ring.clear();
        responder.established = 0;
        let (send, receive) = (responder.send_queue, responder.receive_queue);
        drop(responder);
        self.outstanding.store(0, Relaxed);
        self.sent.store(0, Relaxed);
        fabric().completion_queues[send as usize].forget(place);
        fabric().completion_queues[receive as usize].forget(place);
    }

    pub(crate) fn destroy(&self) {
        self.set_state(abi::IBV_QPS_RESET);
        self.responder.lock().ring.free();
        self.release();
    }

    /// Tells the owner of an event.
    pub(crate) fn raise(&self, kind: abi::ibv_event_type) {
        let object = self.responder.lock().object;
        let event = Event { object, kind, port: 0 };
        fabric().contexts[self.context.load(Relaxed) as usize].push(event);
    }

    /// Moves the queue pair to the error state and completes its receives. The owner completes what
    /// waits in the send queue.
    pub(crate) fn fail(&self, place: u32, event: Option<abi::ibv_event_type>) {
        if self.fail_quietly() {
            if let Some(kind) = event {
                self.raise(kind);
            }
            self.flush_if_failed(place);
        }
    }

    /// Moves the queue pair to the error state. False if it was there, or was not in use. The
    /// caller calls [`Self::flush_if_failed`] next.
    pub(crate) fn fail_quietly(&self) -> bool {
        let failing = |state| {
            (state != abi::IBV_QPS_ERR && state != abi::IBV_QPS_RESET).then_some(abi::IBV_QPS_ERR)
        };
        let failed = self.state.fetch_update(AcqRel, Relaxed, failing).is_ok();
        if failed && self.responder.lock().shared != 0 {
            self.raise(abi::IBV_EVENT_QP_LAST_WQE_REACHED);
        }
        failed
    }

    /// Completes the receives of a queue pair in the error state.
    pub(crate) fn flush_if_failed(&self, place: u32) {
        if self.state() == abi::IBV_QPS_ERR {
            self.flush_receives(place);
        }
    }

    /// Completes all receives that wait, with the status "flushed".
    fn flush_receives(&self, place: u32) {
        loop {
            let mut responder = self.responder.lock();
            let Some(receive) = responder.ring.pop() else { return };
            let entry = Entry {
                wr_id: receive.wr_id,
                status: abi::IBV_WC_WR_FLUSH_ERR,
                opcode: abi::IBV_WC_RECV,
                number: self.number(),
                queue_pair: place,
                source: Source::Receive,
                ..Entry::default()
            };
            let queue = &fabric().completion_queues[responder.receive_queue as usize];
            // The queue pair has failed already, and the owner of the queue has been told.
            let _ = queue.push(entry, false);
        }
    }

    /// Takes the oldest receive, of the own queue or the shared one, with the protection domain of
    /// its regions.
    pub(crate) fn take_receive(responder: &mut Responder) -> Option<(Receive, u32, Source)> {
        if responder.shared != 0 {
            let queue = &fabric().shared_queues[responder.shared as usize];
            let (receive, domain) = queue.pop()?;
            return Some((receive, domain, Source::Shared(responder.shared)));
        }
        let receive = responder.ring.pop()?;
        Some((receive, responder.domain, Source::Receive))
    }
}
