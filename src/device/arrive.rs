//! How a rank of a device comes into a communicator: its inbox is made before the ranks exchange cards; then it looks whose inbox its
//! kernels reach.

use std::sync::Arc;

use maypole_algorithms::Rank;
use maypole_cuda::driver::{Device, Stream};
use maypole_cuda::ipc::Imported;
use maypole_cuda::stream::Relaxed;

use super::card::DeviceCard;
use super::gpu::Gpu;
use super::inbox::{Inbox, Reached, Shape};
use crate::config::Config;
use crate::error::Error;

/// A rank's device and inbox, before it knows the others.
pub(crate) struct Arrival {
    pub(crate) gpu: Arc<Gpu>,
    /// Of the communicator's own; it waits for no other stream.
    pub(crate) stream: Stream,
    pub(crate) shape: Shape,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) card: DeviceCard,
}

/// Another rank, as far as its memory is concerned.
pub(crate) struct Other<'a> {
    pub(crate) card: Option<&'a DeviceCard>,
    pub(crate) same_process: bool,
    pub(crate) same_host: bool,
}

impl Arrival {
    /// Of a rank on device `ordinal` in a communicator of `nranks`.
    pub(crate) fn new(config: &Config, ordinal: i32, nranks: u32) -> Result<Self, Error> {
        let gpu = Gpu::open(ordinal)?;
        let _relaxed = Relaxed::begin(gpu.device.driver())?;
        let stream = Stream::new(&gpu.device)?;
        let shape = Shape::new(config, nranks);
        let inbox = Inbox::new(&gpu, &stream, &shape)?;
        let card = DeviceCard::new(&gpu, &inbox)?;
        Ok(Self { gpu, stream, shape, inbox, card })
    }

    /// The inboxes that this rank's kernels reach, by rank. `between_devices`: also those on other devices.
    pub(crate) fn reach(
        &self,
        me: Rank,
        others: &[Other<'_>],
        between_devices: bool,
    ) -> Vec<Option<Reached>> {
        let reach = |(rank, other): (usize, &Other<'_>)| {
            let card = other.card.filter(|_| rank != me as usize)?;
            let allowed = between_devices || card.uuid == self.card.uuid;
            if !allowed || !self.card.can_access(card) {
                return None;
            }
            let reached = if other.same_process {
                self.reach_here(card)
            } else if other.same_host {
                self.reach_there(card)
            } else {
                return None;
            };
            reached
                .inspect_err(|error| {
                    log::info!(
                        target: "P2P",
                        "rank {me} does not reach the device memory of rank {rank}: {error}"
                    );
                })
                .ok()
        };
        others.iter().enumerate().map(reach).collect()
    }

    fn reach_here(&self, card: &DeviceCard) -> Result<Reached, Error> {
        if card.uuid != self.card.uuid {
            let device = &self.gpu.device;
            device.access(&*Device::open(device.driver(), card.ordinal)?)?;
        }
        Reached::here(card.inbox)
            .ok_or_else(|| Error::internal("the inbox of a rank of this process is gone"))
    }

    fn reach_there(&self, card: &DeviceCard) -> Result<Reached, Error> {
        let handle = card.handle.as_ref().ok_or_else(|| Error::Unsupported {
            what: String::from("sharing of device memory between processes by this driver"),
        })?;
        Ok(Reached::Imported(Imported::open(&self.gpu.device, handle)?))
    }
}
