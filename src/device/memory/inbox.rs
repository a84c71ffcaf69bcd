//! The inbox of a rank in device memory, and the inboxes of other ranks that its kernels reach.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use maypole_algorithms::Rank;
use maypole_algorithms::schedule::Channel;
use maypole_cuda::driver::DriverError;
use maypole_cuda::ipc::{self, Imported, MemoryHandle};
use maypole_cuda::pool::{DevicePool, PooledBuffer};
use maypole_cuda::stream::CudaStream;
use maypole_transport::sync::{AtomicU32, Ordering};

use super::inbox_layout::DeviceInboxLayout;
use crate::process::PerProcess;

/// The inbox of a rank. It returns to the pool when no rank of the process uses it any more.
pub(crate) struct DeviceInbox {
    /// Present until the memory returns to the pool.
    memory: Option<PooledBuffer>,
    /// Not zero: ranks of other processes may still write to the inbox after its end.
    may_be_written: AtomicU32,
}

/// The inboxes of this process, by address, for the other ranks of the process.
static INBOXES: PerProcess<Mutex<InboxList>> = PerProcess::new();

type InboxList = Vec<(u64, Weak<DeviceInbox>)>;

fn inboxes() -> MutexGuard<'static, InboxList> {
    // A thread that panicked cannot have left the list half changed.
    INBOXES.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceInbox {
    /// Makes an inbox of `layout`. Other ranks may use it as soon as this returns.
    pub(in crate::device) fn new(
        pool: &Arc<DevicePool>,
        stream: &CudaStream,
        layout: &DeviceInboxLayout,
    ) -> Result<Arc<Self>, DriverError> {
        let memory = pool.shareable_memory(layout.bytes())?;
        stream.fill(&memory, 0, layout.zeroed())?;
        stream.synchronize()?;
        let inbox = Arc::new(Self { memory: Some(memory), may_be_written: AtomicU32::new(0) });
        let mut inboxes = inboxes();
        inboxes.retain(|(_, inbox)| inbox.strong_count() > 0);
        inboxes.push((inbox.address(), Arc::downgrade(&inbox)));
        Ok(inbox)
    }

    fn memory(&self) -> &PooledBuffer {
        self.memory.as_ref().expect("the memory is present until it returns to the pool")
    }

    pub(in crate::device) fn address(&self) -> u64 {
        self.memory().address()
    }

    pub(in crate::device) fn bytes(&self) -> usize {
        self.memory().bytes()
    }

    /// Notes whether ranks of other processes may still write to the inbox after its end. Its
    /// memory is then not used again.
    pub(in crate::device) fn set_may_be_written(&self, may: bool) {
        self.may_be_written.store(may.into(), Ordering::Relaxed);
    }

    /// Reads the word at `offset` through `stream`.
    pub(in crate::device) fn word(
        &self,
        stream: &CudaStream,
        offset: usize,
    ) -> Result<u64, DriverError> {
        stream.read_word(self.memory(), offset)
    }

    /// Whether the ranks at the other ends of `links` have taken all messages of rank `me`, and so
    /// write to this inbox no more. Reads the counters through `stream`.
    pub(in crate::device) fn is_drained(
        &self,
        stream: &CudaStream,
        layout: &DeviceInboxLayout,
        me: Rank,
        links: impl Iterator<Item = (Rank, Channel)>,
    ) -> Result<bool, DriverError> {
        let words = stream.read(self.memory(), layout.zeroed())?;
        let word =
            |offset: usize| words[offset..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let mut offsets = links.map(|(peer, channel)| layout.offsets(me, peer, channel));
        Ok(offsets.all(|link| word(link.drained) == word(link.sent)))
    }

    /// The handle by which other processes open the inbox; `None` if the driver cannot share it.
    pub(in crate::device) fn handle(&self) -> Option<MemoryHandle> {
        ipc::export_buffer(self.memory()).ok()
    }
}

impl Drop for DeviceInbox {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take()
            && self.may_be_written.load(Ordering::Relaxed) != 0
        {
            memory.retire();
        }
    }
}

/// The inbox of another rank, which the kernels of this rank reach.
pub(crate) enum PeerInbox {
    /// The inbox of a rank of this process.
    SameProcess(Arc<DeviceInbox>),
    /// The inbox of a rank of another process on this host.
    Imported(Imported),
}

impl PeerInbox {
    /// The inbox at `address` in this process, unless it has ended.
    pub(in crate::device) fn in_this_process(address: u64) -> Option<Self> {
        let inboxes = inboxes();
        let (_, inbox) = inboxes.iter().rev().find(|(known, _)| *known == address)?;
        inbox.upgrade().map(Self::SameProcess)
    }

    /// Whether its owner is in another process.
    pub(in crate::device) fn is_of_other_process(&self) -> bool {
        matches!(self, Self::Imported(_))
    }

    pub(in crate::device) fn address(&self) -> u64 {
        match self {
            Self::SameProcess(inbox) => inbox.address(),
            Self::Imported(imported) => imported.address(),
        }
    }
}
