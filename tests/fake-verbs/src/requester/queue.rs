//! The send queue of a queue pair. It is in the memory of its process alone.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::abi;
use crate::fabric::network::{Address, Path};
use crate::fabric::{QueuePair, fabric};
use crate::sync::Acquire;

/// A work request.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) wr_id: u64,
    pub(crate) opcode: abi::ibv_wr_opcode,
    /// Or'ed `ibv_send_flags`.
    pub(crate) flags: u32,
    /// In network byte order, or the key to invalidate.
    pub(crate) immediate: u32,
    pub(crate) remote_address: u64,
    pub(crate) remote_key: u32,
    pub(crate) compare_add: u64,
    pub(crate) swap: u64,
    pub(crate) entries: Vec<abi::ibv_sge>,
    /// The data itself, if the flags say so.
    pub(crate) inline: Vec<u8>,
    pub(crate) datagram: Option<Datagram>,
    pub(crate) bind: Option<Bind>,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) address: Address,
    pub(crate) number: u32,
    pub(crate) key: u32,
}

/// To what a memory window is bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bind {
    /// The key of the window before, and after.
    pub(crate) window: u32,
    pub(crate) new_key: u32,
    /// The local key of the region; 0 unbinds.
    pub(crate) region: u32,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) access: u32,
}

impl Work {
    pub(crate) fn is_inline(&self) -> bool {
        self.flags & abi::IBV_SEND_INLINE != 0
    }
}

/// What of a queue pair does not change.
pub(crate) struct Core {
    pub(crate) place: u32,
    pub(crate) number: u32,
    pub(crate) kind: abi::ibv_qp_type,
    pub(crate) domain: u32,
    pub(crate) device: u32,
    pub(crate) completions: u32,
    queue: Mutex<SendQueue>,
}

impl Core {
    pub(crate) fn new(
        (place, number): (u32, u32),
        kind: abi::ibv_qp_type,
        (domain, device, completions): (u32, u32, u32),
        queue: SendQueue,
    ) -> Self {
        Self { place, number, kind, domain, device, completions, queue: Mutex::new(queue) }
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part that is shared with other processes.
    pub(crate) fn shared(&self) -> &'static QueuePair {
        &fabric().queue_pairs[self.place as usize]
    }
}

/// The send queue.
pub(crate) struct SendQueue {
    pub(crate) capacity: u32,
    pub(crate) most_entries: u32,
    pub(crate) most_inline: u32,
    /// Whether each work request makes a completion.
    pub(crate) all_signaled: bool,
    /// What `ibv_modify_qp` has set, with the number of the next packet.
    pub(crate) attributes: abi::ibv_qp_attr,
    /// The address of the connection; none before the state "ready to receive".
    pub(crate) address: Option<Address>,
    pub(crate) waiting: VecDeque<Work>,
    /// Work requests that were posted, ever, since the last reset.
    pub(crate) posted: u64,
    /// Work requests that were executed since the last completion.
    pub(crate) unreported: u64,
    pub(super) attempt: Attempt,
    /// Whether the engine looks after the queue.
    pub(super) watched: bool,
    /// The path, and for which state of the network it was found.
    path: Option<(u32, Path)>,
}

/// The attempts to send the first work request that waits.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) unanswered: u32,
    pub(super) not_ready: u32,
    pub(super) not_before: Option<Instant>,
}

impl SendQueue {
    pub(crate) fn new(cap: &abi::ibv_qp_cap, all_signaled: bool) -> Self {
        // SAFETY: all fields of the attributes are numbers or arrays of them, for which zeros are
        // valid.
        let attributes = unsafe { std::mem::zeroed() };
        Self {
            capacity: cap.max_send_wr,
            most_entries: cap.max_send_sge,
            most_inline: cap.max_inline_data,
            all_signaled,
            attributes,
            address: None,
            waiting: VecDeque::new(),
            posted: 0,
            unreported: 0,
            attempt: Attempt::default(),
            watched: false,
            path: None,
        }
    }

    /// Drops all that waits, as the state "reset" demands.
    pub(crate) fn reset(&mut self) {
        self.waiting.clear();
        (self.posted, self.unreported) = (0, 0);
        self.attempt = Attempt::default();
        self.address = None;
        self.path = None;
    }

    /// Places that are taken: by work that waits, or whose completion was not polled, or that made
    /// no completion and was not followed by one that was polled.
    pub(crate) fn used(&self, pair: &QueuePair) -> u64 {
        self.posted - pair.sent_count()
    }

    /// What becomes of a message of the connection.
    pub(super) fn path(&mut self) -> Path {
        let fabric = fabric();
        let changes = fabric.network_changes.load(Acquire);
        if let Some((at, path)) = self.path
            && at == changes
        {
            return path;
        }
        let path = match &self.address {
            Some(address) => fabric.network.lock().path(address),
            None => Path::Lost("there is no connection"),
        };
        self.path = Some((changes, path));
        path
    }

    /// Forgets the path, when the connection changes.
    pub(crate) fn connect(&mut self, address: Address) {
        self.address = Some(address);
        self.path = None;
    }
}
