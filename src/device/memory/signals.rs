//! Words of pinned memory by which the kernels and the host of a rank signal each other: that work
//! is to be aborted, what went wrong, and how many works have finished.

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_cuda::driver::DriverError;
use maypole_cuda::launch::KernelError;
use maypole_cuda::pool::{DevicePool, PooledPinned};
use maypole_cuda::stream::{CudaStream, RelaxedCapture};
use maypole_transport::sync::{AtomicU64, Ordering};

use crate::error::Error;

/// Bytes from one word to the next: two cache lines, which processors fetch together.
const WORD_STRIDE: usize = 128;
const ABORT: usize = 0;
const KERNEL_ERROR: usize = 1;
const FINISHED: usize = 2;
const REPLAYED: usize = 3;
/// The send and the receive buffer of barriers.
const BARRIER: usize = 4;
const WORDS: usize = 6;

/// The words shared by the kernels and the host of one rank.
pub(crate) struct DeviceSignals {
    page: PooledPinned,
    /// The number of launched works that count themselves in `FINISHED`.
    launched: AtomicU64,
    /// Not zero: the service thread looks at these signals regularly, until all works have
    /// finished.
    watched: AtomicU64,
    /// An empty stream, used to query the state of the device.
    probe: CudaStream,
    /// The rank at the other end of each link, in the order of the link tables.
    peers: Vec<Rank>,
}

impl DeviceSignals {
    pub(in crate::device) fn new(
        pool: &Arc<DevicePool>,
        peers: Vec<Rank>,
    ) -> Result<Self, DriverError> {
        let page = pool.pinned_memory(WORDS * WORD_STRIDE)?;
        // SAFETY: the page has that many bytes, and no kernel knows it yet.
        unsafe { page.host().as_ptr().write_bytes(0, WORDS * WORD_STRIDE) };
        Ok(Self {
            page,
            launched: AtomicU64::new(0),
            watched: AtomicU64::new(0),
            probe: CudaStream::new(pool.device())?,
            peers,
        })
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the word lies within the page, which lives as long as `self`, and is aligned;
        // the host accesses it only as an atomic, and kernels by single stores and loads.
        unsafe { AtomicU64::from_ptr(self.page.host().as_ptr().add(index * WORD_STRIDE).cast()) }
    }

    fn address(&self, index: usize) -> u64 {
        self.page.address() + (index * WORD_STRIDE) as u64
    }

    /// The device address of the word that aborts the kernels.
    pub(in crate::device) fn abort_address(&self) -> u64 {
        self.address(ABORT)
    }

    /// The device address of the word to which a kernel writes what went wrong.
    pub(in crate::device) fn kernel_error_address(&self) -> u64 {
        self.address(KERNEL_ERROR)
    }

    /// The device address of the word that counts finished works. Replays of graphs are counted
    /// in a word of their own, since the host does not know how often a graph is launched.
    pub(in crate::device) fn finished_address(&self, captured: bool) -> u64 {
        self.address(if captured { REPLAYED } else { FINISHED })
    }

    /// The device addresses of the send and receive buffer for barriers.
    pub(crate) fn barrier_addresses(&self) -> (u64, u64) {
        (self.address(BARRIER), self.address(BARRIER + 1))
    }

    /// Makes all running and queued kernels end as soon as they see it.
    pub(crate) fn abort(&self) {
        self.word(ABORT).store(1, Ordering::Release);
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.word(ABORT).load(Ordering::Acquire) != 0
    }

    /// The first error that a kernel has reported, as the error of a call.
    pub(crate) fn kernel_error(&self) -> Option<Error> {
        let word = self.word(KERNEL_ERROR).load(Ordering::Acquire);
        let (link, what) = match KernelError::from_word(word)? {
            KernelError::Tag { link, found } => {
                (link, format!("carries the hash {found:#010x}, which is not that of this call"))
            }
            KernelError::Length { link, .. } => {
                (link, String::from("is not as long as this call needs"))
            }
            KernelError::Program => {
                return Some(Error::internal("a kernel found a program that it cannot run"));
            }
        };
        // The communicator asks that rank for its calls and then names both calls in the error.
        let peer = self.peers.get(link as usize).copied().unwrap_or_default();
        Some(Error::Mismatch {
            ranks: [peer, peer],
            what: format!("a message of rank {peer} {what}"),
        })
    }

    /// Takes back what [`launch`](Self::launch) has counted.
    pub(crate) fn not_launched(&self, works: u64) {
        self.launched.fetch_sub(works, Ordering::SeqCst);
    }

    /// Counts `works` more works as launched. True if the caller has to wake the service thread,
    /// because it does not look at these signals at present.
    #[must_use]
    pub(crate) fn launch(&self, works: u64) -> bool {
        // Sequentially consistent, as in `unwatch`: either this thread sees that the service
        // thread has stopped looking, or the service thread sees the launch.
        self.launched.fetch_add(works, Ordering::SeqCst);
        self.watched.load(Ordering::SeqCst) == 0 && self.watched.swap(1, Ordering::SeqCst) == 0
    }

    /// The number of works launched so far.
    pub(crate) fn launched(&self) -> u64 {
        self.launched.load(Ordering::SeqCst)
    }

    /// The number of finished works, aborted ones included. What their kernels wrote is visible.
    pub(crate) fn finished(&self) -> u64 {
        self.word(FINISHED).load(Ordering::Acquire)
    }

    /// Whether all launched works have finished.
    pub(crate) fn is_idle(&self) -> bool {
        self.finished() >= self.launched()
    }

    /// Ends the watch of the service thread. False if something was launched meanwhile, in which
    /// case the thread goes on.
    pub(crate) fn unwatch(&self) -> bool {
        self.watched.store(0, Ordering::SeqCst);
        self.is_idle() || self.watched.swap(1, Ordering::SeqCst) != 0
    }

    /// Returns the error of the device if a kernel of this or another program has failed.
    pub(crate) fn query_device(&self) -> Result<(), DriverError> {
        let _relaxed = RelaxedCapture::begin(self.probe.device().driver())?;
        self.probe.is_idle().map(drop)
    }

    /// Bytes of pinned memory.
    pub(in crate::device) fn bytes(&self) -> usize {
        self.page.bytes()
    }
}
