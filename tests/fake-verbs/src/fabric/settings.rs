//! What holds for the whole fabric and can be changed at any time.

use crate::sync::{AtomicU32, AtomicU64, Relaxed};

/// In which order work is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// In the order in which it was posted, at once, in the thread that posts.
    Posted,
    /// As a reliable connection allows: the bytes of RDMA writes that follow each other arrive in
    /// any order, and queue pairs overtake each other.
    Placement,
    /// As adaptive routing without ordering allows (EFA): whole messages of one queue pair overtake
    /// each other.
    Messages,
}

#[repr(C)]
pub(crate) struct Settings {
    order: AtomicU32,
    /// State of the generator of random numbers.
    random: AtomicU64,
    /// Timers run so many times faster than they should; 0 counts as 1.
    pub(crate) hurry: AtomicU32,
    /// Whether a misuse ends the process.
    pub(crate) abort_on_misuse: AtomicU32,
    /// Bytes that a process may register; 0 is no limit.
    pub(crate) memory_limit: AtomicU64,
    /// Registrations to refuse, and with which error number.
    pub(crate) refusals: AtomicU32,
    pub(crate) refusal: AtomicU32,
    /// Work requests to fail, and with which status.
    pub(crate) failures: AtomicU32,
    pub(crate) failure: AtomicU32,
    /// Messages for which receivers say that they have no receive, although they have.
    pub(crate) not_ready: AtomicU32,
    /// Counters.
    pub(crate) posted: AtomicU64,
    pub(crate) doorbells: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) polled: AtomicU64,
    pub(crate) registered: AtomicU64,
}

impl Settings {
    pub(crate) fn order(&self) -> Order {
        match self.order.load(Relaxed) {
            1 => Order::Placement,
            2 => Order::Messages,
            _ => Order::Posted,
        }
    }

    pub(crate) fn set_order(&self, order: Order, seed: u64) {
        self.random.store(seed, Relaxed);
        self.order.store(order as u32, Relaxed);
    }

    /// A random number below `bound` (splitmix64).
    pub(crate) fn random(&self, bound: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// Takes one of `count` that remain; false if none does.
    pub(crate) fn take(count: &AtomicU32) -> bool {
        count.load(Relaxed) != 0
            && count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}
