//! The pump: moves the messages of one peer and channel between two counted rings and the link of the transport. It waits for nothing.

use std::sync::Arc;
use std::sync::atomic::fence;

use maypole_algorithms::Rank;
use maypole_transport::device_ring::{DeviceRingReceiver, DeviceRingSender};
use maypole_transport::error::LinkError;
use maypole_transport::link::{Incoming, Lendable, Outgoing};
use maypole_transport::sync::{AtomicU64, Ordering};

/// The proxy's ends of the rings of one peer and channel.
pub(super) struct Rings {
    /// What kernels send.
    pub(super) from_kernel: DeviceRingReceiver,
    /// What kernels receive.
    pub(super) to_kernel: DeviceRingSender,
    /// Messages that the calls queued so far take from the peer, since the link was made.
    pub(super) wanted: Arc<AtomicU64>,
}

/// Both directions between the kernels of this rank and one peer, on one channel.
pub(super) struct Pump {
    peer: Rank,
    outgoing: Outgoing,
    incoming: Incoming,
    rings: Rings,
    /// Why nothing more comes from the peer, once it is known.
    gone: Option<LinkError>,
}

impl Pump {
    pub(super) fn new(
        peer: Rank,
        (outgoing, incoming): (Outgoing, Incoming),
        rings: Rings,
    ) -> Self {
        Self { peer, outgoing, incoming, rings, gone: None }
    }

    /// Why nothing more comes from the peer, if that is known.
    pub(super) fn gone(&self) -> Option<LinkError> {
        self.gone
    }

    /// Moves what can be moved now, at most a ringful each way so that no pump keeps the others waiting; true if that was anything.
    ///
    /// # Errors
    /// An abort; a peer that is gone although a kernel sends to it or a queued call takes messages from it; corrupt rings.
    pub(super) fn turn(&mut self) -> Result<bool, LinkError> {
        let sent = self.send()?;
        Ok(self.receive()? || sent)
    }

    /// Everything that kernels have sent is with the link.
    pub(super) fn is_flushed(&mut self) -> Result<bool, LinkError> {
        Ok(self.rings.from_kernel.receive()?.is_none())
    }

    /// The queued calls take messages from the peer that have not come.
    pub(super) fn is_waiting(&self) -> bool {
        // Only a count: the ring that follows its change makes it seen.
        self.rings.to_kernel.sent() < self.rings.wanted.load(Ordering::Relaxed)
    }

    /// This rank may be reading memory that a peer of this process lends.
    pub(super) fn borrows(&self) -> bool {
        // Both directions are of one kind.
        self.outgoing.slots.lendable() == Lendable::Anything
    }

    fn send(&mut self) -> Result<bool, LinkError> {
        let mut moved = false;
        for _ in 0..self.outgoing.slots.credits() {
            let Some(message) = self.rings.from_kernel.receive()? else { break };
            let Some(slot) = self.outgoing.slots.reserve()? else { break };
            if message.len > slot.capacity {
                let why = "a kernel sent it a message that is longer than a slot of its link";
                return Err(LinkError::Corrupt { peer: self.peer, why });
            }
            // SAFETY: the message is readable until it is released, the slot is ours until it is sent, and is long enough; one is
            // memory of the ring, the other of the link.
            unsafe { slot.data.copy_from_nonoverlapping(message.data, message.len) };
            self.outgoing.slots.send(message.len, message.tag);
            self.rings.from_kernel.release();
            moved = true;
        }
        Ok(moved)
    }

    fn receive(&mut self) -> Result<bool, LinkError> {
        let mut moved = false;
        for _ in 0..self.outgoing.slots.credits() {
            if let Some(error) = self.gone {
                // Whoever has sent all that was asked of it may leave.
                return if self.is_waiting() { Err(error) } else { Ok(moved) };
            }
            let Some(slot) = self.rings.to_kernel.reserve()? else { break };
            let message = match self.incoming.slots.receive() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error @ (LinkError::PeerDied { .. } | LinkError::PeerLeft { .. })) => {
                    self.gone = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if message.len > slot.capacity {
                let why = "it sent a message that is longer than a slot";
                return Err(LinkError::Corrupt { peer: self.peer, why });
            }
            // SAFETY: as in `send`, the other way round; where the message is the peer's own memory, the caller holds `reading`.
            unsafe { slot.data.copy_from_nonoverlapping(message.data, message.len) };
            if message.in_other_process {
                // Only what is no older than an abort counts.
                fence(Ordering::Acquire);
                self.incoming.slots.receive()?;
            }
            self.rings.to_kernel.send(message.len, message.tag);
            self.incoming.slots.release();
            moved = true;
        }
        Ok(moved)
    }
}
