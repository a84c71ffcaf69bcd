//! Words of pinned memory by which a rank's kernels and its host tell each other what cannot wait: stop, what went wrong, and how far
//! the device is.

use maypole_algorithms::Rank;
use maypole_cuda::driver::{DriverError, Stream};
use maypole_cuda::launch::Trouble;
use maypole_cuda::stream::Relaxed;
use maypole_transport::sync::{AtomicU64, Ordering};

use super::gpu::Gpu;
use super::pool::PinnedMemory;
use crate::error::Error;

/// Each word has a cache line of its own, and the neighbour that a processor fetches with it.
const LINE: usize = 128;
const ABORT: usize = 0;
const TROUBLE: usize = 1;
const FINISHED: usize = 2;
const REPLAYED: usize = 3;
/// What a barrier folds, and what comes of it.
const BARRIER: usize = 4;
const WORDS: usize = 6;

/// What a rank's kernels and its host tell each other.
pub(crate) struct Signals {
    page: PinnedMemory,
    /// Works that were launched and count themselves in `finished`.
    launched: AtomicU64,
    /// Not zero: the service thread looks here from time to time, until nothing is under way.
    watched: AtomicU64,
    /// A stream with nothing in it, to ask how the device is.
    probe: Stream,
    /// The other end of each link, by its place in the tables.
    peers: Vec<Rank>,
}

impl Signals {
    pub(crate) fn new(gpu: &Gpu, peers: Vec<Rank>) -> Result<Self, DriverError> {
        let page = gpu.pool.pinned(WORDS * LINE)?;
        // SAFETY: the page has as many bytes, and nobody uses it but this.
        unsafe { page.host().as_ptr().write_bytes(0, WORDS * LINE) };
        Ok(Self {
            page,
            launched: AtomicU64::new(0),
            watched: AtomicU64::new(0),
            probe: Stream::new(&gpu.device)?,
            peers,
        })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the word lies within the page, which lives as long as `self`, on a line of its own; all its users are atomic.
        unsafe { AtomicU64::from_ptr(self.page.host().as_ptr().add(index * LINE).cast()) }
    }

    fn address(&self, index: usize) -> u64 {
        self.page.address() + (index * LINE) as u64
    }

    /// The word that ends the kernels, as they see it.
    pub(crate) fn abort_address(&self) -> u64 {
        self.address(ABORT)
    }

    pub(crate) fn trouble_address(&self) -> u64 {
        self.address(TROUBLE)
    }

    /// Where a work counts itself when it is through: one of a graph apart from others.
    pub(crate) fn finished_address(&self, captured: bool) -> u64 {
        self.address(if captured { REPLAYED } else { FINISHED })
    }

    /// Memory for what a barrier sends and receives.
    pub(crate) fn barrier_addresses(&self) -> (u64, u64) {
        (self.address(BARRIER), self.address(BARRIER + 1))
    }

    /// Ends what runs and what is queued, as soon as it looks.
    pub(crate) fn abort(&self) {
        self.word(ABORT).store(1, Ordering::Release);
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.word(ABORT).load(Ordering::Acquire) != 0
    }

    /// What a kernel found wrong, if one has, as an error of a call.
    pub(crate) fn trouble(&self) -> Option<Error> {
        let (peer, what) = match Trouble::from_word(self.word(TROUBLE).load(Ordering::Acquire))? {
            Trouble::Tag { link, found } => {
                (link, format!("carries the hash {found:#010x}, which is not that of this call"))
            }
            Trouble::Length { link, .. } => {
                (link, String::from("is of another length than it should be"))
            }
            Trouble::Program => {
                return Some(Error::internal("a kernel met a program that it cannot run"));
            }
        };
        // The communicator asks that rank for its calls, and puts both in words.
        let peer = self.peers.get(peer as usize).copied().unwrap_or_default();
        Some(Error::Mismatch {
            ranks: [peer, peer],
            what: format!("a message of rank {peer} {what}"),
        })
    }

    /// `works` more are launched; true if the service thread is to be told that there is something to look at.
    #[must_use]
    pub(crate) fn launch(&self, works: u64) -> bool {
        // In one order with those of `unwatch`: either this sees that nobody looks, or the thread sees the launch.
        self.launched.fetch_add(works, Ordering::SeqCst);
        self.watched.load(Ordering::SeqCst) == 0 && self.watched.swap(1, Ordering::SeqCst) == 0
    }

    /// Works that were launched so far.
    pub(crate) fn launched(&self) -> u64 {
        self.launched.load(Ordering::SeqCst)
    }

    /// Works that are over, those that were aborted too. What the others wrote is there.
    pub(crate) fn finished(&self) -> u64 {
        self.word(FINISHED).load(Ordering::Acquire)
    }

    /// True if nothing that was launched is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.finished() >= self.launched()
    }

    /// The service thread looks no more, unless something has been launched since: then false.
    pub(crate) fn unwatch(&self) -> bool {
        self.watched.store(0, Ordering::SeqCst);
        self.is_idle() || self.watched.swap(1, Ordering::SeqCst) != 0
    }

    /// The error that a kernel of this or another program has left the device with.
    pub(crate) fn ask_device(&self) -> Result<(), DriverError> {
        let _relaxed = Relaxed::begin(self.probe.device().driver())?;
        self.probe.is_idle().map(drop)
    }

    /// Bytes of pinned memory.
    pub(crate) fn bytes(&self) -> usize {
        self.page.bytes()
    }
}
