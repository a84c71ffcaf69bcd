//! What the thread that serves TCP tells the thread that makes RDMA connections out of pairs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::TcpPair;
use crate::Rank;
use crate::sync::{AtomicBool, Ordering};

/// Set in the number of streams of a pair whose messages are to travel over RDMA.
pub(crate) const UPGRADE: u32 = 1 << 31;

/// A queue of what has happened to such pairs, and a descriptor to wait for.
#[derive(Debug)]
pub(crate) struct UpgradeQueue {
    requests: Mutex<UpgradeRequests>,
    wake: OwnedFd,
    /// The thread will look at all pairs within its tick.
    tick_pending: AtomicBool,
}

/// What has happened.
#[derive(Debug, Default)]
pub(crate) struct UpgradeRequests {
    /// Pairs of which all streams are there for the first time.
    pub(crate) complete: Vec<Arc<TcpPair>>,
    /// Peers that have sent control messages.
    pub(crate) news: Vec<Rank>,
    /// The thread must end.
    pub(crate) end: bool,
}

impl UpgradeQueue {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { requests: Mutex::default(), wake, tick_pending: AtomicBool::new(false) })
    }

    fn add(&self, add: impl FnOnce(&mut UpgradeRequests)) {
        add(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake();
    }

    pub(crate) fn add_complete(&self, pair: Arc<TcpPair>) {
        self.add(|requests| requests.complete.push(pair));
    }

    pub(crate) fn add_news(&self, peer: Rank) {
        self.add(|requests| requests.news.push(peer));
    }

    pub(crate) fn end(&self) {
        self.add(|requests| requests.end = true);
    }

    /// Makes the thread look at everything.
    pub(crate) fn wake(&self) {
        // If the counter is full, the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Like [`wake`](Self::wake), but the end of the thread's next tick is soon enough.
    pub(crate) fn wake_within_tick(&self) {
        if !self.tick_pending.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Whether a tick was asked for.
    pub(crate) fn tick_is_pending(&self) -> bool {
        self.tick_pending.load(Ordering::SeqCst)
    }

    /// The tick begins: what is asked for from now on needs another one.
    pub(crate) fn begin_tick(&self) {
        self.tick_pending.store(false, Ordering::SeqCst);
    }

    /// The descriptor that is readable after a wake-up.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes what has happened since the last call, and resets the descriptor.
    pub(crate) fn take(&self) -> UpgradeRequests {
        // It does not block.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let end = requests.end;
        UpgradeRequests { end, ..std::mem::take(&mut *requests) }
    }
}
