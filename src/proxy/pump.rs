//! The pump: moves the messages of one peer and channel between two device rings and a link of the
//! transport, without waiting.

use std::sync::Arc;
use std::sync::atomic::fence;

use maypole_algorithms::Rank;
use maypole_transport::device_ring::{DeviceRingReceiver, DeviceRingSender};
use maypole_transport::error::LinkError;
use maypole_transport::link::{Incoming, Lendable, Outgoing};
use maypole_transport::sync::{AtomicU64, Ordering};

/// The ends of the proxy of the device rings of one peer and channel.
pub(super) struct LinkRings {
    /// The ring on which kernels send.
    pub(super) from_kernel: DeviceRingReceiver,
    /// The ring from which kernels receive.
    pub(super) to_kernel: DeviceRingSender,
    /// The number of messages that the calls queued so far receive from the peer.
    pub(super) expected: Arc<AtomicU64>,
}

/// Both directions between the kernels of this rank and one peer, on one channel.
pub(super) struct Pump {
    peer: Rank,
    outgoing: Outgoing,
    incoming: Incoming,
    rings: LinkRings,
    /// Why nothing more comes from the peer, once it is known.
    gone: Option<LinkError>,
}

impl Pump {
    pub(super) fn new(
        peer: Rank,
        (outgoing, incoming): (Outgoing, Incoming),
        rings: LinkRings,
    ) -> Self {
        Self { peer, outgoing, incoming, rings, gone: None }
    }

    /// Why nothing more comes from the peer, if that is known.
    pub(super) fn gone(&self) -> Option<LinkError> {
        self.gone
    }

    /// Moves what can be moved now, in each direction at most as many messages as a ring holds, so
    /// that no pump delays the others. True if anything moved.
    ///
    /// # Errors
    /// The communicator was aborted; the peer is gone although a kernel sends to it or a queued
    /// call needs messages from it; or the rings are corrupt.
    pub(super) fn run(&mut self) -> Result<bool, LinkError> {
        let sent = self.send()?;
        Ok(self.receive()? || sent)
    }

    /// Whether the link has taken everything that kernels sent.
    pub(super) fn is_flushed(&mut self) -> Result<bool, LinkError> {
        Ok(self.rings.from_kernel.receive()?.is_none())
    }

    /// Whether queued calls need messages of the peer that have not come.
    pub(super) fn is_waiting(&self) -> bool {
        // Relaxed is enough: the ring of the doorbell after a change makes it visible.
        self.rings.to_kernel.sent() < self.rings.expected.load(Ordering::Relaxed)
    }

    /// Whether this rank may read memory that a peer of this process lends.
    pub(super) fn borrows(&self) -> bool {
        // Both directions use the same kind of link.
        self.outgoing.slots.lendable() == Lendable::Anything
    }

    /// Moves messages from kernels to the link.
    fn send(&mut self) -> Result<bool, LinkError> {
        let mut moved = false;
        for _ in 0..self.outgoing.slots.credits() {
            let Some(message) = self.rings.from_kernel.receive()? else { break };
            let Some(slot) = self.outgoing.slots.reserve()? else { break };
            if message.len > slot.capacity {
                let why = "a kernel sent it a message that is longer than a slot of its link";
                return Err(LinkError::Corrupt { peer: self.peer, why });
            }
            // SAFETY: the message is readable until it is released. The slot belongs to this rank
            // until it is sent, and is long enough. They do not overlap: one is memory of the ring,
            // the other of the link.
            unsafe { slot.data.copy_from_nonoverlapping(message.data, message.len) };
            self.outgoing.slots.send(message.len, message.tag);
            self.rings.from_kernel.release();
            moved = true;
        }
        Ok(moved)
    }

    /// Moves messages from the link to kernels.
    fn receive(&mut self) -> Result<bool, LinkError> {
        let mut moved = false;
        for _ in 0..self.outgoing.slots.credits() {
            if let Some(error) = self.gone {
                // A peer that has sent everything may leave.
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
            // SAFETY: as in `send`, in the other direction. If the message is memory that the peer
            // lends, the caller holds `reading`.
            unsafe { slot.data.copy_from_nonoverlapping(message.data, message.len) };
            if message.in_other_process {
                // The copy is valid only if it ended before an abort, so check for one after it.
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
