//! What a rank on a device sets up before it knows the other ranks, and how it then opens the
//! inboxes of those whose memory its kernels reach.

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_cuda::driver::{Device, DriverError};
use maypole_cuda::ipc::Imported;
use maypole_cuda::stream::{CudaStream, RelaxedCapture};

use super::device_info::DeviceInfo;
use super::gpu::Gpu;
use crate::config::Config;
use crate::device::memory::inbox::{DeviceInbox, PeerInbox};
use crate::device::memory::inbox_layout::DeviceInboxLayout;
use crate::error::Error;

/// A rank's device and inbox, before the rank knows the other ranks.
pub(crate) struct RankSetup {
    pub(crate) gpu: Arc<Gpu>,
    /// The communicator's own stream. It does not synchronise with any other stream.
    pub(crate) stream: CudaStream,
    pub(crate) layout: DeviceInboxLayout,
    pub(crate) inbox: Arc<DeviceInbox>,
    pub(crate) info: DeviceInfo,
}

/// What decides whether the kernels of this rank reach the inbox of another rank.
pub(crate) struct PeerDevice<'a> {
    /// What that rank says of its device; `None` for a rank on host memory.
    pub(crate) info: Option<&'a DeviceInfo>,
    /// Whether that rank is in this process.
    pub(crate) same_process: bool,
    /// Whether that rank is on this host.
    pub(crate) same_host: bool,
}

impl RankSetup {
    /// Sets up a rank on device `ordinal` for a communicator of `nranks`.
    ///
    /// # Errors
    /// The device cannot be used, or has no memory left.
    pub(crate) fn new(config: &Config, ordinal: i32, nranks: u32) -> Result<Self, Error> {
        let gpu = super::devices::open(ordinal)?;
        let _relaxed = RelaxedCapture::begin(gpu.device.driver())?;
        let stream = CudaStream::new(&gpu.device)?;
        let layout = DeviceInboxLayout::new(config, nranks);
        let inbox = DeviceInbox::new(&gpu.pool, &stream, &layout)?;
        let info = DeviceInfo::new(&gpu, &inbox)?;
        Ok(Self { gpu, stream, layout, inbox, info })
    }

    /// Opens the inboxes that this rank's kernels reach; the result has one entry per rank. Without
    /// `between_devices` only ranks on the same device are considered.
    pub(crate) fn open_inboxes(
        &self,
        me: Rank,
        peers: &[PeerDevice<'_>],
        between_devices: bool,
    ) -> Vec<Option<PeerInbox>> {
        let open = |(rank, peer): (usize, &PeerDevice<'_>)| {
            let info = peer.info.filter(|_| rank != me as usize)?;
            let allowed = between_devices || info.uuid == self.info.uuid;
            if !allowed || !self.info.may_access(info) {
                return None;
            }
            let inbox = if peer.same_process {
                self.open_in_process(info)
            } else if peer.same_host {
                self.open_from_other_process(info)
            } else {
                return None;
            };
            inbox
                .inspect_err(|error| {
                    log::info!(
                        target: "P2P",
                        "rank {me} does not reach the device memory of rank {rank}: {error}"
                    );
                })
                .ok()
        };
        peers.iter().enumerate().map(open).collect()
    }

    /// Writes a word to each of the `reached` inboxes, as kernels write messages there, and waits
    /// for that. `word` tells the word that one rank writes to another.
    ///
    /// # Errors
    /// The driver fails.
    pub(crate) fn try_writes(
        &self,
        me: Rank,
        reached: &[Option<PeerInbox>],
        word: impl Fn(Rank, Rank) -> u64,
    ) -> Result<(), Error> {
        // Ranks of other processes may do the same to this inbox until all ranks have met.
        self.inbox.set_may_be_written(true);
        let _relaxed = RelaxedCapture::begin(self.gpu.device.driver())?;
        let current = self.gpu.device.current()?;
        for (rank, inbox) in (0..).zip(reached) {
            let Some(inbox) = inbox else { continue };
            let address = inbox.address() + self.layout.trial_word(rank, me) as u64;
            // SAFETY: this rank alone writes to that slot, nobody reads it before all ranks have
            // met, and `reached` keeps the inbox open.
            unsafe { self.gpu.write_word(&current, &self.stream, address, word(me, rank))? };
        }
        Ok(self.stream.synchronize()?)
    }

    /// For each rank whether it has written its word (see [`try_writes`](Self::try_writes)) to this
    /// rank's inbox. All ranks have met since their writes.
    ///
    /// # Errors
    /// The driver fails.
    pub(crate) fn arrived_writes(
        &self,
        me: Rank,
        word: impl Fn(Rank, Rank) -> u64,
    ) -> Result<Vec<bool>, Error> {
        self.inbox.set_may_be_written(false);
        let _relaxed = RelaxedCapture::begin(self.gpu.device.driver())?;
        let arrived = |from: Rank| {
            let offset = self.layout.trial_word(me, from);
            Ok(self.inbox.word(&self.stream, offset)? == word(from, me))
        };
        let arrived: Result<_, DriverError> = (0..self.layout.nranks)
            .map(|from| if from == me { Ok(false) } else { arrived(from) })
            .collect();
        Ok(arrived?)
    }

    fn open_in_process(&self, info: &DeviceInfo) -> Result<PeerInbox, Error> {
        if info.uuid != self.info.uuid {
            let device = &self.gpu.device;
            device.enable_access(&*Device::open(device.driver(), info.ordinal)?)?;
        }
        PeerInbox::in_this_process(info.inbox)
            .ok_or_else(|| Error::internal("the inbox of a rank of this process has ended"))
    }

    fn open_from_other_process(&self, info: &DeviceInfo) -> Result<PeerInbox, Error> {
        let handle = info.handle.as_ref().ok_or_else(|| Error::Unsupported {
            what: String::from("sharing of device memory between processes by this driver"),
        })?;
        Ok(PeerInbox::Imported(Imported::open(&self.gpu.device, handle)?))
    }
}
